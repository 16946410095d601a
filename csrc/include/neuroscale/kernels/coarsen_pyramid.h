// Coarse-graining pyramid of structured fields: volume mean, variance and sum on all coarser levels, in one pass.
//
// Level s has k_s times fewer cells per side than level s - 1, in d = 2 (plane) or d = 3 (volume) dimensions. With
// B(i) the K = k_s^d cells of level s - 1 that lie in cell i of level s, and m_0 = q_0 = fine, v_0 = 0:
//
//     mean        m_s[i] = 1/K sum_B m_(s-1)                              volume mean of `fine` over cell i
//     variance    v_s[i] = 1/K sum_B ( v_(s-1) + (m_(s-1) - m_s[i])^2 )   of the fine values in cell i
//     sum         q_s[i] = sum_B q_(s-1)                                  conserved: its total is the same on all
//     levels
//
// The cells of a level have equal volumes, unless `volumes` V says otherwise; then, with q_0 = V_0 fine,
//
//     volume      V_s[i] = sum_B V_(s-1)                                            given by the caller
//     sum         q_s[i] = sum_B q_(s-1)                                            the integral of `fine` over cell i
//     mean        m_s[i] = q_s[i] / V_s[i]
//     variance    v_s[i] = 1/V_s[i] sum_B V_(s-1) ( v_(s-1) + (m_(s-1) - m_s[i])^2 )
//
//     fine      T [fields, height, width] or T [fields, depth, height, width], row-major, contiguous; any unit
//     outputs   one pointer per level: T [fields, (depth,) height, width] of that level; the unit of `fine`, the
//               variance its square. `variance` and `total` are nullptr where they are not wanted.
//     volumes   nullptr, or one pointer per level from the finest on: T [(depth,) height, width], the same for all
//               fields; positive. `total` is needed then.
//
// T is float or double. Points and components are both "fields": each is coarsened by itself, so a value that is not
// finite stays in its own field and block. Order of additions: down the rows of all planes of a block first, then
// across the columns, so that whole rows are added; every backend keeps it, hence all agree bit for bit, whatever the
// number of threads. Error of a mean: at most (k^(d-1) + k) eps * mean |.| per level. The caller owns all memory,
// arrays do not overlap, and the shape has been checked with `divisible`. Nothing here allocates, synchronises or
// throws.
#pragma once

#include <cstdint>

namespace neuroscale::kernels {

constexpr std::int64_t max_pyramid_levels = 30;
constexpr std::int64_t max_pyramid_factor = 256;

// Shape of a batch of fields; depth is 1 and `volume` false for plane fields, which are not coarsened along depth.
struct PyramidShape {
    std::int64_t fields;
    std::int64_t depth;
    std::int64_t height;
    std::int64_t width;
    std::int64_t levels;
    std::int64_t factor[max_pyramid_levels]; // factor[s - 1] = k_s
    bool volume;
};

template <typename T>
struct PyramidOutputs {
    T* const* mean;
    T* const* variance;
    T* const* total;
};

// Whether every side can be divided by all factors.
constexpr bool divisible(const PyramidShape& shape) {
    if (shape.levels < 1 || shape.levels > max_pyramid_levels || shape.height < 1 || shape.width < 1 ||
        shape.depth < 1) {
        return false;
    }
    std::int64_t block = 1;
    for (std::int64_t s = 0; s < shape.levels; ++s) {
        if (shape.factor[s] < 2 || shape.factor[s] > max_pyramid_factor) {
            return false;
        }
        block *= shape.factor[s];
        if (shape.height % block != 0 || shape.width % block != 0 || (shape.volume && shape.depth % block != 0)) {
            return false;
        }
    }
    return true;
}

namespace reference {
template <typename T>
void coarsen_pyramid(const T* fine, const T* const* volumes, const PyramidOutputs<T>& outputs,
                     const PyramidShape& shape) noexcept;
}

namespace cpu {
template <typename T>
void coarsen_pyramid(const T* fine, const T* const* volumes, const PyramidOutputs<T>& outputs,
                     const PyramidShape& shape) noexcept;
}

namespace cuda {
// Queues the work on `stream` (a cudaStream_t); fine, volumes and all outputs are device memory, the lists of pointers
// are host memory. Returns a cudaError_t, 0 for success.
template <typename T>
int coarsen_pyramid(const T* fine, const T* const* volumes, const PyramidOutputs<T>& outputs, const PyramidShape& shape,
                    void* stream) noexcept;

// Number of devices that can be used; 0 without a driver.
int device_count() noexcept;

// Text of a cudaError_t.
const char* error_text(int error) noexcept;
} // namespace cuda

} // namespace neuroscale::kernels
