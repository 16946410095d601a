// One thread per coarse cell and component; it keeps the eight partial sums of the specification.
#include "neuroscale/kernels/coarsen_cells.h"

#include "launch.h"

namespace neuroscale::kernels::cuda {

template <typename T>
__global__ void coarsen(CellMap map, const T* weights, const T* scale, const T* fine, std::int64_t components,
                        T* coarse) {
    for (std::int64_t i = first_item(); i < map.coarse * components; i += item_step()) {
        const std::int64_t c = i / components;
        const std::int64_t k = i % components;
        const std::int64_t end = map.offsets[c + 1];
        double high = 0.0;
        double low = 0.0;
        for (std::int64_t block = map.offsets[c]; block < end; block += cell_block) {
            double lane[cell_lanes] = {};
            for (std::int64_t j = block; j < block + cell_block && j < end; j += cell_lanes) {
#pragma unroll
                for (std::int64_t e = 0; e < cell_lanes; ++e) {
                    if (j + e < end) {
                        const std::int64_t cell = map.cells[j + e];
                        const double weight = weights == nullptr ? 1.0 : static_cast<double>(weights[j + e]);
                        lane[e] += weight * static_cast<double>(fine[cell * components + k]);
                    }
                }
            }
            const double term =
                ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
            const double sum = high + term;
            const double part = sum - high;
            low += (high - (sum - part)) + (term - part);
            high = sum;
        }
        const double factor = scale == nullptr ? 1.0 : static_cast<double>(scale[c]);
        coarse[i] = static_cast<T>(factor * (high + low));
    }
}

template <typename T>
__global__ void refine(CellMap map, const T* weights, const T* scale, const T* coarse, std::int64_t components,
                       T* fine) {
    for (std::int64_t i = first_item(); i < map.coarse * components; i += item_step()) {
        const std::int64_t c = i / components;
        const std::int64_t k = i % components;
        const double factor = scale == nullptr ? 1.0 : static_cast<double>(scale[c]);
        for (std::int64_t j = map.offsets[c]; j < map.offsets[c + 1]; ++j) {
            const std::int64_t cell = map.cells[j];
            const double weight = weights == nullptr ? 1.0 : static_cast<double>(weights[j]);
            fine[cell * components + k] = static_cast<T>(weight * factor * static_cast<double>(coarse[i]));
        }
    }
}

template <typename T>
int coarsen_cells(const CellMap& map, const T* weights, const T* scale, const T* fine, std::int64_t components,
                  T* coarse, void* stream) noexcept {
    return launch(map.coarse * components, stream, coarsen<T>, map, weights, scale, fine, components, coarse);
}

template <typename T>
int refine_cells(const CellMap& map, const T* weights, const T* scale, const T* coarse, std::int64_t components,
                 T* fine, void* stream) noexcept {
    return launch(map.coarse * components, stream, refine<T>, map, weights, scale, coarse, components, fine);
}

template int coarsen_cells<float>(const CellMap&, const float*, const float*, const float*, std::int64_t, float*,
                                  void*) noexcept;
template int coarsen_cells<double>(const CellMap&, const double*, const double*, const double*, std::int64_t, double*,
                                   void*) noexcept;
template int refine_cells<float>(const CellMap&, const float*, const float*, const float*, std::int64_t, float*,
                                 void*) noexcept;
template int refine_cells<double>(const CellMap&, const double*, const double*, const double*, std::int64_t, double*,
                                  void*) noexcept;

} // namespace neuroscale::kernels::cuda
