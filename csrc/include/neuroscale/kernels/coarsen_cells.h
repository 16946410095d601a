// Coarse-graining of unstructured cells through a CSR map, and its exact transpose.
//
//     coarsen    coarse[c, k]        = s_c sum_(e in c) w_e fine[cells[e], k]
//     refine     fine[cells[e], k]   = w_e s_c coarse[c, k]                    for each e in c
//
// The entries of coarse cell c are e = offsets[c] ... offsets[c + 1] - 1. With the volumes of the fine cells as weights
// w and s_c = 1 / sum_c w, `coarsen` is the volume mean; w = s = 1 gives the conserved sum, and
// then `refine` is conservative injection: sum V fine = sum V_c coarse. With equal w and s, <refine x, y> = <x, coarsen
// y>.
//
//     offsets    int64 [coarse + 1], rising, from 0
//     cells      int64 [offsets[coarse]], each fine cell at most once
//     weights    T [offsets[coarse]], in the order of the entries; scale T [coarse]; nullptr stands for 1
//     fine       T [fine, components], coarse T [coarse, components]; row-major, contiguous; any unit
//
// T is float or double; sums are made in double. Within a segment, entry number e goes to partial sum e mod 8; after
// each 64 entries the partial sums are added as ((0+4)+(2+6)) + ((1+5)+(3+7)) to a compensated total (Knuth's TwoSum).
// Hence the error is at most 20 eps * sum |w fine| whatever the length of the segment, and all backends agree bit for
// bit, whatever the number of threads. An empty segment gives 0. `refine` leaves fine cells outside of the map as they
// are. The caller owns all memory and has checked the map; arrays do not overlap. Nothing here allocates, synchronises
// or throws. Source: Knuth, The Art of Computer Programming 2, 4.2.2 (TwoSum); Higham 2002, ch. 4 (bounds).
#pragma once

#include <cstdint>

namespace neuroscale::kernels {

struct CellMap {
    std::int64_t coarse;
    const std::int64_t* offsets;
    const std::int64_t* cells;
    std::int64_t entries; // offsets[coarse], known without reading it: it may be on a device
};

constexpr std::int64_t cell_lanes = 8;
constexpr std::int64_t cell_block = 64;

namespace reference {
template <typename T>
void coarsen_cells(const CellMap& map, const T* weights, const T* scale, const T* fine, std::int64_t components,
                   T* coarse) noexcept;
template <typename T>
void refine_cells(const CellMap& map, const T* weights, const T* scale, const T* coarse, std::int64_t components,
                  T* fine) noexcept;
} // namespace reference

namespace cpu {
template <typename T>
void coarsen_cells(const CellMap& map, const T* weights, const T* scale, const T* fine, std::int64_t components,
                   T* coarse) noexcept;
template <typename T>
void refine_cells(const CellMap& map, const T* weights, const T* scale, const T* coarse, std::int64_t components,
                  T* fine) noexcept;
} // namespace cpu

namespace cuda {
// As above, queued on `stream`; all arrays are device memory. Returns a cudaError_t, 0 for success.
template <typename T>
int coarsen_cells(const CellMap& map, const T* weights, const T* scale, const T* fine, std::int64_t components,
                  T* coarse, void* stream) noexcept;
template <typename T>
int refine_cells(const CellMap& map, const T* weights, const T* scale, const T* coarse, std::int64_t components,
                 T* fine, void* stream) noexcept;
} // namespace cuda

} // namespace neuroscale::kernels
