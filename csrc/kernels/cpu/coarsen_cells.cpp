// Segments are dealt to threads by their number of entries; a segment is one thread's, so the result does not depend on
// the number of threads. Up to `width` components of an entry are added side by side.
#include "neuroscale/kernels/coarsen_cells.h"

#include "parallel.h"

#include <algorithm>

namespace neuroscale::kernels::cpu {

constexpr std::int64_t width = 16;
constexpr std::int64_t ahead = 64; // entries whose values are fetched before they are needed: a map may have no order

template <typename T>
struct Cells {
    CellMap map;
    const T* weights;
    const T* scale;
    const T* from;
    T* to;
    std::int64_t components;
    std::int64_t entries;

    // The fine values of an entry further on; the last entry stands for those beyond it.
    NEUROSCALE_INLINE std::int64_t soon(std::int64_t j) const {
        return map.cells[j + ahead < entries ? j + ahead : entries - 1] * components;
    }
};

// Entries j ... j + entries - 1, each to a partial sum of its own.
template <int N, typename T, std::int64_t room>
NEUROSCALE_INLINE void add_entries(const Cells<T>& a, std::int64_t j, std::int64_t entries, std::int64_t k,
                                   std::int64_t count, double (&lane)[cell_lanes][room]) {
    for (std::int64_t e = 0; e < entries; ++e) {
        const double weight = a.weights == nullptr ? 1.0 : static_cast<double>(a.weights[j + e]);
        __builtin_prefetch(a.from + a.soon(j + e) + k);
        const T* value = a.from + a.map.cells[j + e] * a.components + k;
        for (std::int64_t i = 0; i < (N > 0 ? N : count); ++i) {
            lane[e][i] += weight * static_cast<double>(value[i]);
        }
    }
}

// Components k ... k + count - 1 of one coarse cell; `count` is N where N > 0.
template <int N, typename T>
NEUROSCALE_INLINE void coarsen_segment(const Cells<T>& a, std::int64_t c, std::int64_t k, std::int64_t any) {
    constexpr std::int64_t room = N > 0 ? N : width;
    const std::int64_t count = N > 0 ? N : any;
    double high[room] = {};
    double low[room] = {};
    const std::int64_t end = a.map.offsets[c + 1];
    for (std::int64_t block = a.map.offsets[c]; block < end; block += cell_block) {
        double lane[cell_lanes][room] = {};
        const std::int64_t stop = std::min(block + cell_block, end);
        std::int64_t j = block;
        for (; j + cell_lanes <= stop; j += cell_lanes) {
            add_entries<N>(a, j, cell_lanes, k, count, lane);
        }
        add_entries<N>(a, j, stop - j, k, count, lane);
        for (std::int64_t i = 0; i < count; ++i) {
            const double term = ((lane[0][i] + lane[4][i]) + (lane[2][i] + lane[6][i])) +
                                ((lane[1][i] + lane[5][i]) + (lane[3][i] + lane[7][i]));
            const double sum = high[i] + term;
            const double part = sum - high[i];
            low[i] += (high[i] - (sum - part)) + (term - part);
            high[i] = sum;
        }
    }
    const double factor = a.scale == nullptr ? 1.0 : static_cast<double>(a.scale[c]);
    for (std::int64_t i = 0; i < count; ++i) {
        a.to[c * a.components + k + i] = static_cast<T>(factor * (high[i] + low[i]));
    }
}

template <int N, typename T>
NEUROSCALE_INLINE void coarsen_range(const Cells<T>& a, std::int64_t first, std::int64_t last) {
    for (std::int64_t c = first; c < last; ++c) {
        if (N > 0) {
            coarsen_segment<N>(a, c, 0, N);
            continue;
        }
        for (std::int64_t k = 0; k < a.components; k += width) {
            coarsen_segment<0>(a, c, k, std::min(width, a.components - k));
        }
    }
}

template <typename T>
NEUROSCALE_INLINE void coarsen_any(const Cells<T>& a, std::int64_t first, std::int64_t last) {
    switch (a.components) {
    case 1:
        return coarsen_range<1>(a, first, last);
    case 2:
        return coarsen_range<2>(a, first, last);
    case 3:
        return coarsen_range<3>(a, first, last);
    case 4:
        return coarsen_range<4>(a, first, last);
    case 6:
        return coarsen_range<6>(a, first, last);
    case 9:
        return coarsen_range<9>(a, first, last);
    default:
        return coarsen_range<0>(a, first, last);
    }
}

template <int N, typename T>
NEUROSCALE_INLINE void refine_range(const Cells<T>& a, std::int64_t first, std::int64_t last) {
    const std::int64_t components = N > 0 ? N : a.components;
    for (std::int64_t c = first; c < last; ++c) {
        const double scale = a.scale == nullptr ? 1.0 : static_cast<double>(a.scale[c]);
        const T* value = a.from + c * components;
        for (std::int64_t j = a.map.offsets[c]; j < a.map.offsets[c + 1]; ++j) {
            const double factor = (a.weights == nullptr ? 1.0 : static_cast<double>(a.weights[j])) * scale;
            T* out = a.to + a.map.cells[j] * components;
            for (std::int64_t k = 0; k < components; ++k) {
                out[k] = static_cast<T>(factor * static_cast<double>(value[k]));
            }
        }
    }
}

template <typename T>
NEUROSCALE_INLINE void refine_any(const Cells<T>& a, std::int64_t first, std::int64_t last) {
    switch (a.components) {
    case 1:
        return refine_range<1>(a, first, last);
    case 3:
        return refine_range<3>(a, first, last);
    default:
        return refine_range<0>(a, first, last);
    }
}

NEUROSCALE_CLONES static void coarsen_part(const Cells<float>& a, std::int64_t first, std::int64_t last) {
    coarsen_any(a, first, last);
}

NEUROSCALE_CLONES static void coarsen_part(const Cells<double>& a, std::int64_t first, std::int64_t last) {
    coarsen_any(a, first, last);
}

NEUROSCALE_CLONES static void refine_part(const Cells<float>& a, std::int64_t first, std::int64_t last) {
    refine_any(a, first, last);
}

NEUROSCALE_CLONES static void refine_part(const Cells<double>& a, std::int64_t first, std::int64_t last) {
    refine_any(a, first, last);
}

// part(first, last) for ranges of segments with about equal numbers of entries (an empty segment counts as one).
template <typename T, typename Part>
static void deal(const Cells<T>& a, Part part) {
    const bool threads = (a.entries + a.map.coarse) * a.components * std::int64_t(sizeof(T)) >= worth_threads;
    const std::int64_t parts = threads ? 4 * max_threads() : 1;
    const std::int64_t load = a.entries + a.map.coarse;
    const auto start_of = [&](std::int64_t p) {
        std::int64_t low = 0;
        std::int64_t high = a.map.coarse;
        while (low < high) {
            const std::int64_t middle = low + (high - low) / 2;
            if (a.map.offsets[middle] + middle < load * p / parts) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        return low;
    };
#pragma omp parallel for schedule(static) if (threads)
    for (std::int64_t p = 0; p < parts; ++p) {
        part(a, start_of(p), p + 1 == parts ? a.map.coarse : start_of(p + 1));
    }
}

template <typename T>
void coarsen_cells(const CellMap& map, const T* weights, const T* scale, const T* fine, std::int64_t components,
                   T* coarse) noexcept {
    deal(Cells<T>{map, weights, scale, fine, coarse, components, map.offsets[map.coarse]},
         [](const Cells<T>& a, std::int64_t first, std::int64_t last) { coarsen_part(a, first, last); });
}

template <typename T>
void refine_cells(const CellMap& map, const T* weights, const T* scale, const T* coarse, std::int64_t components,
                  T* fine) noexcept {
    deal(Cells<T>{map, weights, scale, coarse, fine, components, map.offsets[map.coarse]},
         [](const Cells<T>& a, std::int64_t first, std::int64_t last) { refine_part(a, first, last); });
}

template void coarsen_cells<float>(const CellMap&, const float*, const float*, const float*, std::int64_t,
                                   float*) noexcept;
template void coarsen_cells<double>(const CellMap&, const double*, const double*, const double*, std::int64_t,
                                    double*) noexcept;
template void refine_cells<float>(const CellMap&, const float*, const float*, const float*, std::int64_t,
                                  float*) noexcept;
template void refine_cells<double>(const CellMap&, const double*, const double*, const double*, std::int64_t,
                                   double*) noexcept;

} // namespace neuroscale::kernels::cpu
