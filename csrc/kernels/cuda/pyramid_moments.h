// Means with variances, sums or unequal volumes: one thread per coarse cell and one launch per level. The input is read
// once from memory (a cell's second pass finds it in the cache), each level is read again by the next.
#pragma once

#include "launch.h"
#include "neuroscale/kernels/coarsen_pyramid.h"

namespace neuroscale::kernels::cuda {

// What one level needs; `variance` and `total` of the finer and this level may be nullptr.
template <typename T>
struct Step {
    const T* mean;
    const T* variance;
    const T* total;
    const T* volume; // nullptr where all cells are equal; coarse_volume as well
    const T* coarse_volume;
    T* coarse_mean;
    T* coarse_variance;
    T* coarse_total;
    std::int64_t height;
    std::int64_t width;
    std::int64_t field; // cells of a field
    std::int64_t k;
    std::int64_t planes;
    bool finest;
};

template <typename T, typename Value>
__device__ T sum(const Step<T>& step, Value value) {
    T total{};
    for (std::int64_t x = 0; x < step.k; ++x) {
        T column{};
        for (std::int64_t z = 0; z < step.planes; ++z) {
            for (std::int64_t y = 0; y < step.k; ++y) {
                const T term = value((z * step.height + y) * step.width + x);
                column = z + y == 0 ? term : column + term;
            }
        }
        total = x == 0 ? column : total + column;
    }
    return total;
}

template <typename T>
__global__ void coarsen(Step<T> step, std::int64_t cells) {
    const std::int64_t width = step.width / step.k;
    const std::int64_t height = step.height / step.k;
    const T count = static_cast<T>(step.planes * step.k * step.k);
    for (std::int64_t i = first_item(); i < cells; i += item_step()) {
        const std::int64_t plane = i / width / height * step.planes;
        const std::int64_t at = (plane * step.height + i / width % height * step.k) * step.width + i % width * step.k;
        const bool equal = step.volume == nullptr;
        const T* volume = equal ? nullptr : step.volume + at % step.field;
        const T size = equal ? count : step.coarse_volume[i % (step.field / (step.planes * step.k * step.k))];
        if (step.coarse_total != nullptr) {
            const bool weighted = !equal && step.finest;
            step.coarse_total[i] = sum(step, [&](std::int64_t offset) {
                return weighted ? volume[offset] * step.total[at + offset] : step.total[at + offset];
            });
        }
        const T whole =
            equal ? sum(step, [&](std::int64_t offset) { return step.mean[at + offset]; }) : step.coarse_total[i];
        const T mean = whole / size;
        step.coarse_mean[i] = mean;
        if (step.coarse_variance != nullptr) {
            const T squares = sum(step, [&](std::int64_t offset) {
                const T d = step.mean[at + offset] - mean;
                const T square = step.variance == nullptr ? d * d : step.variance[at + offset] + d * d;
                return equal ? square : volume[offset] * square;
            });
            step.coarse_variance[i] = squares / size;
        }
    }
}

// Queues all levels.
template <typename T>
int coarsen_moments(const T* fine, const T* const* volumes, const PyramidOutputs<T>& outputs, const PyramidShape& shape,
                    void* stream) noexcept {
    Step<T> step{};
    step.mean = step.total = fine;
    step.height = shape.height;
    step.width = shape.width;
    step.field = shape.depth * shape.height * shape.width;
    std::int64_t cells = shape.fields * shape.depth * shape.height * shape.width;
    for (std::int64_t s = 0; s < shape.levels; ++s) {
        step.k = shape.factor[s];
        step.planes = shape.volume ? step.k : 1;
        step.coarse_mean = outputs.mean[s];
        step.coarse_variance = outputs.variance == nullptr ? nullptr : outputs.variance[s];
        step.coarse_total = outputs.total == nullptr ? nullptr : outputs.total[s];
        step.volume = volumes == nullptr ? nullptr : volumes[s];
        step.coarse_volume = volumes == nullptr ? nullptr : volumes[s + 1];
        step.finest = s == 0;
        cells /= step.planes * step.k * step.k;
        if (const int error = launch(cells, stream, coarsen<T>, step, cells); error != 0) {
            return error;
        }
        step.mean = step.coarse_mean;
        step.variance = step.coarse_variance;
        step.total = step.coarse_total;
        step.field /= step.planes * step.k * step.k;
        step.height /= step.k;
        step.width /= step.k;
    }
    return 0;
}

} // namespace neuroscale::kernels::cuda
