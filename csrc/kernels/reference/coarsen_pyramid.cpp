// Plain loops, to be checked by eye; every other backend is tested against this one.
#include "neuroscale/kernels/coarsen_pyramid.h"

namespace neuroscale::kernels::reference {

// The block of `planes` x k x k cells of a level that lies in one cell of the next.
template <typename T>
struct Block {
    const T* corner;
    std::int64_t planes;
    std::int64_t k;
    std::int64_t to_plane;
    std::int64_t to_row;

    std::int64_t cells() const { return planes * k * k; }
};

// Down the rows of all planes, then across the columns; value(offset) of each cell.
template <typename T, typename Value>
static T sum(const Block<T>& block, Value value) {
    T total{};
    for (std::int64_t x = 0; x < block.k; ++x) {
        T column{};
        for (std::int64_t z = 0; z < block.planes; ++z) {
            for (std::int64_t y = 0; y < block.k; ++y) {
                const T term = value(z * block.to_plane + y * block.to_row + x);
                column = z + y == 0 ? term : column + term;
            }
        }
        total = x == 0 ? column : total + column;
    }
    return total;
}

template <typename T>
static T plain_sum(const Block<T>& block) {
    return sum(block, [&](std::int64_t at) { return block.corner[at]; });
}

// sum of volume times the value at the corner; volume: at the same corner
template <typename T>
static T weighted_sum(const Block<T>& block, const T* volume) {
    return sum(block, [&](std::int64_t at) { return volume[at] * block.corner[at]; });
}

// sum of squares about the mean; variance: of the finer level at the same corner, or nullptr at the finest; volume: at
// the same corner, or nullptr where all are equal
template <typename T>
static T squares_about(T mean, const Block<T>& block, const T* variance, const T* volume) {
    return sum(block, [&](std::int64_t at) {
        const T d = block.corner[at] - mean;
        const T square = variance == nullptr ? d * d : variance[at] + d * d;
        return volume == nullptr ? square : volume[at] * square;
    });
}

template <typename T>
static const T* moved(const T* pointer, std::int64_t by) {
    return pointer == nullptr ? nullptr : pointer + by;
}

template <typename T>
void coarsen_pyramid(const T* fine, const T* const* volumes, const PyramidOutputs<T>& outputs,
                     const PyramidShape& shape) noexcept {
    std::int64_t depth = shape.depth;
    std::int64_t height = shape.height;
    std::int64_t width = shape.width;
    for (std::int64_t s = 0; s < shape.levels; ++s) {
        const T* mean = s == 0 ? fine : outputs.mean[s - 1];
        const T* variance = s == 0 || outputs.variance == nullptr ? nullptr : outputs.variance[s - 1];
        const std::int64_t k = shape.factor[s];
        const std::int64_t planes = shape.volume ? k : 1;
        const std::int64_t coarse = depth * height * width / (planes * k * k); // cells of a field
        const T* volume = volumes == nullptr ? nullptr : volumes[s];
        std::int64_t out = 0;
        for (std::int64_t plane = 0; plane < shape.fields * depth; plane += planes) {
            for (std::int64_t y = 0; y < height; y += k) {
                for (std::int64_t x = 0; x < width; x += k, ++out) {
                    const std::int64_t at = (plane * height + y) * width + x;
                    const Block<T> block{mean + at, planes, k, height * width, width};
                    const T* here = moved(volume, at % (depth * height * width));
                    const T size = volume == nullptr ? static_cast<T>(block.cells()) : volumes[s + 1][out % coarse];
                    if (outputs.total != nullptr) {
                        const T* finer = s == 0 ? fine : outputs.total[s - 1];
                        const Block<T> sums{finer + at, planes, k, height * width, width};
                        outputs.total[s][out] = here != nullptr && s == 0 ? weighted_sum(sums, here) : plain_sum(sums);
                    }
                    const T m = (volume == nullptr ? plain_sum(block) : outputs.total[s][out]) / size;
                    outputs.mean[s][out] = m;
                    if (outputs.variance != nullptr) {
                        outputs.variance[s][out] = squares_about(m, block, moved(variance, at), here) / size;
                    }
                }
            }
        }
        depth = shape.volume ? depth / k : depth;
        height /= k;
        width /= k;
    }
}

template void coarsen_pyramid<float>(const float*, const float* const*, const PyramidOutputs<float>&,
                                     const PyramidShape&) noexcept;
template void coarsen_pyramid<double>(const double*, const double* const*, const PyramidOutputs<double>&,
                                      const PyramidShape&) noexcept;

} // namespace neuroscale::kernels::reference
