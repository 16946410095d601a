// Plain loops, to be checked by eye; every other backend is tested against this one.
#include "neuroscale/kernels/coarsen_pyramid.h"

namespace neuroscale::kernels::reference {

template <typename T>
static T mean_of_four(const T* upper, const T* lower) {
    return ((upper[0] + upper[1]) + (lower[0] + lower[1])) * T(0.25);
}

template <typename T>
static T sum_of_four(const T* upper, const T* lower) {
    return (upper[0] + upper[1]) + (lower[0] + lower[1]);
}

template <typename T>
static void halve_plane(const T* fine, T* coarse, std::int64_t height, std::int64_t width) {
    for (std::int64_t y = 0; y < height / 2; ++y) {
        for (std::int64_t x = 0; x < width / 2; ++x) {
            const T* upper = fine + 2 * y * width + 2 * x;
            coarse[y * (width / 2) + x] = mean_of_four(upper, upper + width);
        }
    }
}

template <typename T>
static void halve_pair(const T* front, const T* back, T* coarse, std::int64_t height, std::int64_t width) {
    for (std::int64_t y = 0; y < height / 2; ++y) {
        for (std::int64_t x = 0; x < width / 2; ++x) {
            const std::int64_t corner = 2 * y * width + 2 * x;
            const T nearer = sum_of_four(front + corner, front + corner + width);
            const T farther = sum_of_four(back + corner, back + corner + width);
            coarse[y * (width / 2) + x] = (nearer + farther) * T(0.125);
        }
    }
}

template <typename T>
void coarsen_pyramid(const T* fine, T* const* coarse, const PyramidShape& shape) noexcept {
    PyramidShape from = shape;
    const T* source = fine;
    for (std::int64_t level = 0; level < shape.levels; ++level) {
        const std::int64_t plane = from.height * from.width;
        const std::int64_t planes = from.fields * from.depth;
        for (std::int64_t p = 0; p < planes; p += shape.volume ? 2 : 1) {
            if (shape.volume) {
                T* target = coarse[level] + (p / 2) * (plane / 4);
                halve_pair(source + p * plane, source + (p + 1) * plane, target, from.height, from.width);
            } else {
                halve_plane(source + p * plane, coarse[level] + p * (plane / 4), from.height, from.width);
            }
        }
        source = coarse[level];
        from.height /= 2;
        from.width /= 2;
        from.depth = shape.volume ? from.depth / 2 : from.depth;
    }
}

template void coarsen_pyramid<float>(const float*, float* const*, const PyramidShape&) noexcept;
template void coarsen_pyramid<double>(const double*, double* const*, const PyramidShape&) noexcept;

} // namespace neuroscale::kernels::reference
