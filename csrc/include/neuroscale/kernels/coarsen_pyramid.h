// Coarse-graining pyramid of structured fields: the volume mean, halved per level.
//
//     c_0 = fine,   c_s[i] = 2^-d * sum over the 2^d cells of level s-1 that lie in cell i,   s = 1 ... levels
//
// in d = 2 (plane) or d = 3 (volume) dimensions. All cells of a level have the same volume, so c_s is the volume
// mean of `fine` over blocks of 2^s cells per side, and the sum of cell volume * value is the same on every level.
//
//     fine     T [fields, height, width] or T [fields, depth, height, width], row-major, contiguous; any unit
//     coarse   levels pointers, coarse[s-1]: T [fields, (depth / 2^s,) height / 2^s, width / 2^s], the unit of `fine`
//
// T is float or double. Points and components are both "fields": each is coarsened by itself, so a value that is not
// finite stays in its own field and block. Every backend adds in the order written in the reference, hence all agree
// bit for bit, whatever the number of threads. The caller owns all memory and has checked the shape with `divisible`.
// Nothing here allocates, synchronises or throws.
#pragma once

#include <cstdint>

namespace neuroscale::kernels {

// Shape of a batch of fields; depth is 1 and `volume` false for plane fields, which are not halved along depth.
struct PyramidShape {
    std::int64_t fields;
    std::int64_t depth;
    std::int64_t height;
    std::int64_t width;
    std::int64_t levels;
    bool volume;
};

constexpr std::int64_t max_pyramid_levels = 30;

// Whether every side can be halved `levels` times.
constexpr bool divisible(const PyramidShape& shape) {
    if (shape.levels < 1 || shape.levels > max_pyramid_levels) {
        return false;
    }
    const std::int64_t block = std::int64_t{1} << shape.levels;
    const bool plane = shape.height > 0 && shape.width > 0 && shape.height % block == 0 && shape.width % block == 0;
    return plane && shape.depth > 0 && (!shape.volume || shape.depth % block == 0);
}

namespace reference {
template <typename T>
void coarsen_pyramid(const T* fine, T* const* coarse, const PyramidShape& shape) noexcept;
}

namespace cpu {
template <typename T>
void coarsen_pyramid(const T* fine, T* const* coarse, const PyramidShape& shape) noexcept;
}

namespace cuda {
// Queues the work on `stream` (a cudaStream_t); fine and coarse[s-1] are device memory, `coarse` itself is host memory.
// Returns a cudaError_t, 0 for success.
template <typename T>
int coarsen_pyramid(const T* fine, T* const* coarse, const PyramidShape& shape, void* stream) noexcept;

// Number of devices that can be used; 0 without a driver.
int device_count() noexcept;

// Text of a cudaError_t.
const char* error_text(int error) noexcept;
} // namespace cuda

} // namespace neuroscale::kernels
