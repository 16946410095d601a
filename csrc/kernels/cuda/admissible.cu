// One thread per tensor; the steps are those of small_project.h.
#include "neuroscale/kernels/admissible.h"

#include "launch.h"
#include "neuroscale/kernels/small_project.h"

namespace neuroscale::kernels::cuda {

template <int d, typename T>
__global__ void project(Tensors<T> tensors) {
    for (std::int64_t i = first_item(); i < tensors.n; i += item_step()) {
        small_tensor::project<d>(tensors, i);
    }
}

template <typename T>
int admissible(const Tensors<T>& tensors, void* stream) noexcept {
    switch (tensors.d) {
    case 2:
        return launch(tensors.n, stream, project<2, T>, tensors);
    case 3:
        return launch(tensors.n, stream, project<3, T>, tensors);
    default:
        return launch(tensors.n, stream, project<6, T>, tensors);
    }
}

template int admissible<float>(const Tensors<float>&, void*) noexcept;
template int admissible<double>(const Tensors<double>&, void*) noexcept;

} // namespace neuroscale::kernels::cuda
