// One pass: the input is cut into blocks of 2^levels planes or rows, and each block goes down all levels while it is
// in cache. A block is one thread's, so the result does not depend on the number of threads.
#include "neuroscale/kernels/coarsen_pyramid.h"

#if defined(NEUROSCALE_HAS_TARGET_CLONES)
#define NEUROSCALE_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define NEUROSCALE_CLONES
#endif

namespace neuroscale::kernels::cpu {

// Two neighbouring rows [2 * n] to one row [n].
template <typename T>
inline __attribute__((always_inline)) void halve_rows(const T* upper, const T* lower, T* coarse, std::int64_t n) {
    for (std::int64_t x = 0; x < n; ++x) {
        coarse[x] = ((upper[2 * x] + upper[2 * x + 1]) + (lower[2 * x] + lower[2 * x + 1])) * T(0.25);
    }
}

// Two rows each of two neighbouring planes to one row [n].
template <typename T>
inline __attribute__((always_inline)) void halve_rows(const T* upper, const T* lower, std::int64_t to_back, T* coarse,
                                                      std::int64_t n) {
    for (std::int64_t x = 0; x < n; ++x) {
        const T front = (upper[2 * x] + upper[2 * x + 1]) + (lower[2 * x] + lower[2 * x + 1]);
        const T* upper_back = upper + to_back;
        const T* lower_back = lower + to_back;
        const T back = (upper_back[2 * x] + upper_back[2 * x + 1]) + (lower_back[2 * x] + lower_back[2 * x + 1]);
        coarse[x] = (front + back) * T(0.125);
    }
}

// One level of a block of planes [depth, height, width].
template <typename T>
inline __attribute__((always_inline)) void halve_block(const T* fine, T* coarse, std::int64_t depth,
                                                       std::int64_t height, std::int64_t width, bool volume) {
    const std::int64_t plane = height * width;
    for (std::int64_t z = 0; z < depth; z += volume ? 2 : 1) {
        for (std::int64_t y = 0; y < height; y += 2, coarse += width / 2) {
            const T* upper = fine + z * plane + y * width;
            if (volume) {
                halve_rows(upper, upper + width, plane, coarse, width / 2);
            } else {
                halve_rows(upper, upper + width, coarse, width / 2);
            }
        }
    }
}

NEUROSCALE_CLONES static void halve(const float* fine, float* coarse, std::int64_t depth, std::int64_t height,
                                    std::int64_t width, bool volume) {
    halve_block(fine, coarse, depth, height, width, volume);
}

NEUROSCALE_CLONES static void halve(const double* fine, double* coarse, std::int64_t depth, std::int64_t height,
                                    std::int64_t width, bool volume) {
    halve_block(fine, coarse, depth, height, width, volume);
}

template <typename T>
void coarsen_pyramid(const T* fine, T* const* coarse, const PyramidShape& shape) noexcept {
    const std::int64_t side = std::int64_t{1} << shape.levels;
    // Plane fields are cut into bands of rows, volumes into slabs of planes; all planes of a batch lie in sequence.
    const std::int64_t depth = shape.volume ? side : 1;
    const std::int64_t height = shape.volume ? shape.height : side;
    const std::int64_t size = depth * height * shape.width;
    const std::int64_t shrink = shape.volume ? 8 : 4;
    const std::int64_t blocks = shape.fields * shape.depth * shape.height * shape.width / size;
    // About a millisecond of one core: below it, waking threads on a busy machine costs more than it gains.
    constexpr std::int64_t worth_threads = 1 << 22;
#pragma omp parallel for schedule(static) if (blocks * size >= worth_threads)
    for (std::int64_t block = 0; block < blocks; ++block) {
        const T* source = fine + block * size;
        std::int64_t target_size = size / shrink;
        for (std::int64_t level = 0; level < shape.levels; ++level, target_size /= shrink) {
            T* target = coarse[level] + block * target_size;
            const std::int64_t depth_here = shape.volume ? depth >> level : 1;
            halve(source, target, depth_here, height >> level, shape.width >> level, shape.volume);
            source = target;
        }
    }
}

template void coarsen_pyramid<float>(const float*, float* const*, const PyramidShape&) noexcept;
template void coarsen_pyramid<double>(const double*, double* const*, const PyramidShape&) noexcept;

} // namespace neuroscale::kernels::cpu
