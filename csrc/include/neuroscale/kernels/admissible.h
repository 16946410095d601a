// Batched projection of small tensors onto the admissible ones: symmetric, positive definite, between bounds.
//
//     S  = (T + T^T) / 2
//     T' = S                                                                if L <= S <= U (or S > 0 without bounds)
//     T' = L + D^1/2 clip_[0,1](D^-1/2 (S - L) D^-1/2) D^1/2,  D = U - L    otherwise, with bounds L, U
//     T' = Q max(lambda, lowest max|lambda|) Q^T,  S = Q lambda Q^T         otherwise, without
//
// clip and max act on eigenvalues; <= is that of quadratic forms, up to `slack` times the trace of U (round-off).
// T' is admissible, an admissible tensor stays as it is, and a second application changes nothing beyond the slack.
// Any C with C C^T = D serves as D^1/2. Where D has no width in some direction it gets 1e-14 times the trace of U.
//
//     tensors    T [n, d, stride], d = 2, 3 or 6; the square block of columns first ... first + d - 1 is projected in
//                place; row-major, contiguous; unit of a modulus
//     lower L, upper U    T [n, d, d], symmetric (the upper triangle is read), the same unit; or both nullptr
//     wanted     uint8 [n], 0 leaves the tensor as it is to the bit; nullptr: all are projected
//     changed    uint8 [n]: 0 as it was (or not wanted), 1 made symmetric, 2 projected, 3 not finite (left as it is)
//
// T is float or double; the work is done in double, the bounds of a tensor are in its own row, so tensors do not depend
// on each other. Backends agree bit for bit. The caller owns all memory; arrays do not overlap. Nothing here allocates,
// synchronises or throws. Source: Sylvester's criterion; Horn & Johnson 2013, 7.7 (order of quadratic forms); Golub &
// Van Loan 2013, 8.7 (C from Cholesky's factors).
#pragma once

#include <cstdint>

namespace neuroscale::kernels {

template <typename T>
struct Tensors {
    T* tensors;
    const T* lower;
    const T* upper;
    const std::uint8_t* wanted;
    std::uint8_t* changed;
    std::int64_t n;
    std::int64_t stride;
    std::int64_t first;
    int d;
    double slack;
    double lowest;
};

namespace reference {
template <typename T>
void admissible(const Tensors<T>& tensors) noexcept;
}

namespace cpu {
template <typename T>
void admissible(const Tensors<T>& tensors) noexcept;
}

namespace cuda {
// As above, queued on `stream`; all arrays are device memory. Returns a cudaError_t, 0 for success.
template <typename T>
int admissible(const Tensors<T>& tensors, void* stream) noexcept;
} // namespace cuda

} // namespace neuroscale::kernels
