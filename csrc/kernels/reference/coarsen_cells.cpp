// Plain loops, to be checked by eye; every other backend is tested against this one.
#include "neuroscale/kernels/coarsen_cells.h"

namespace neuroscale::kernels::reference {

// high + low = the exact sum so far, as nearly as two doubles hold it.
struct Compensated {
    double high = 0.0;
    double low = 0.0;

    void add(double term) {
        const double sum = high + term;
        const double part = sum - high;
        low += (high - (sum - part)) + (term - part);
        high = sum;
    }
};

template <typename T>
static double segment_sum(const CellMap& map, std::int64_t c, const T* weights, const T* fine, std::int64_t components,
                          std::int64_t k) {
    Compensated total;
    for (std::int64_t block = map.offsets[c]; block < map.offsets[c + 1]; block += cell_block) {
        double lane[cell_lanes] = {};
        for (std::int64_t j = block; j < block + cell_block && j < map.offsets[c + 1]; ++j) {
            const std::int64_t cell = map.cells[j];
            const double weight = weights == nullptr ? 1.0 : static_cast<double>(weights[j]);
            lane[(j - block) % cell_lanes] += weight * static_cast<double>(fine[cell * components + k]);
        }
        total.add(((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7])));
    }
    return total.high + total.low;
}

template <typename T>
void coarsen_cells(const CellMap& map, const T* weights, const T* scale, const T* fine, std::int64_t components,
                   T* coarse) noexcept {
    for (std::int64_t c = 0; c < map.coarse; ++c) {
        const double factor = scale == nullptr ? 1.0 : static_cast<double>(scale[c]);
        for (std::int64_t k = 0; k < components; ++k) {
            coarse[c * components + k] = static_cast<T>(factor * segment_sum(map, c, weights, fine, components, k));
        }
    }
}

template <typename T>
void refine_cells(const CellMap& map, const T* weights, const T* scale, const T* coarse, std::int64_t components,
                  T* fine) noexcept {
    for (std::int64_t c = 0; c < map.coarse; ++c) {
        for (std::int64_t j = map.offsets[c]; j < map.offsets[c + 1]; ++j) {
            const std::int64_t cell = map.cells[j];
            const double weight = weights == nullptr ? 1.0 : static_cast<double>(weights[j]);
            const double factor = weight * (scale == nullptr ? 1.0 : static_cast<double>(scale[c]));
            for (std::int64_t k = 0; k < components; ++k) {
                fine[cell * components + k] = static_cast<T>(factor * static_cast<double>(coarse[c * components + k]));
            }
        }
    }
}

template void coarsen_cells<float>(const CellMap&, const float*, const float*, const float*, std::int64_t,
                                   float*) noexcept;
template void coarsen_cells<double>(const CellMap&, const double*, const double*, const double*, std::int64_t,
                                    double*) noexcept;
template void refine_cells<float>(const CellMap&, const float*, const float*, const float*, std::int64_t,
                                  float*) noexcept;
template void refine_cells<double>(const CellMap&, const double*, const double*, const double*, std::int64_t,
                                   double*) noexcept;

} // namespace neuroscale::kernels::reference
