// One tensor after the other; the steps are those of small_project.h, which NumPy's eigh checks in the tests.
#include "neuroscale/kernels/admissible.h"

#include "neuroscale/kernels/small_project.h"

namespace neuroscale::kernels::reference {

template <typename T>
void admissible(const Tensors<T>& tensors) noexcept {
    for (std::int64_t i = 0; i < tensors.n; ++i) {
        switch (tensors.d) {
        case 2:
            small_tensor::project<2>(tensors, i);
            break;
        case 3:
            small_tensor::project<3>(tensors, i);
            break;
        default:
            small_tensor::project<6>(tensors, i);
        }
    }
}

template void admissible<float>(const Tensors<float>&) noexcept;
template void admissible<double>(const Tensors<double>&) noexcept;

} // namespace neuroscale::kernels::reference
