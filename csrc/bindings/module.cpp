#include "bindings.h"

PYBIND11_MODULE(_compiled, module) {
    module.doc() = "Compiled kernels of neuroscale_couple; use neuroscale_couple.kernels.";
#if defined(NEUROSCALE_HAS_CUDA)
    module.attr("built_with_cuda") = true;
#else
    module.attr("built_with_cuda") = false;
#endif
    neuroscale::bindings::bind_tensor(module);
    neuroscale::bindings::bind_admissible(module);
    neuroscale::bindings::bind_coarsen_cells(module);
    neuroscale::bindings::bind_coarsen_pyramid(module);
    neuroscale::bindings::bind_conserve(module);
    neuroscale::bindings::bind_gate_select(module);
}
