// Score, compare, and compact the refused points in stable order, with their reasons.
//
//     error[i]   = the piecewise linear curve (knots, levels) at score[i], constant beyond its ends (numpy.interp);
//                  infinite where the score is not finite or there is no curve
//     reason[i]  = not_finite   if reason[i] was 0 and the score is not finite
//                  uncertain    if reason[i] was 0 and not score[i] <= threshold
//     refused    = the i with reason[i] != 0, rising;  refused_count = how many
//
//     score      T [n], >= 0;  knots, levels T [curve], knots rising
//     reason     uint8 [n], in/out;  error T [n], out;  refused int64 [n], out (the first refused_count)
//     parts      int64 [parts_count + 1], work space of the compaction, which is done in parts_count pieces of equal
//                length; refused_count = parts[parts_count]; nothing else depends on parts_count
//
// T is float or double. A point's reason depends on its own row alone; all backends agree bit for bit. The caller owns
// all memory; arrays do not overlap. Nothing here allocates, synchronises or throws.
#pragma once

#include <cstdint>

namespace neuroscale::kernels {

template <typename T>
struct Selection {
    const T* score;
    std::int64_t n;
    T threshold;
    const T* knots;
    const T* levels;
    std::int64_t curve;
    std::uint8_t not_finite;
    std::uint8_t uncertain;
    std::uint8_t* reason;
    T* error;
    std::int64_t* refused;
    std::int64_t* parts;
    std::int64_t parts_count;
};

namespace reference {
template <typename T>
void gate_select(const Selection<T>& selection) noexcept;
}

namespace cpu {
template <typename T>
void gate_select(const Selection<T>& selection) noexcept;
}

namespace cuda {
// As above, queued on `stream`; all arrays are device memory. Returns a cudaError_t, 0 for success.
template <typename T>
int gate_select(const Selection<T>& selection, void* stream) noexcept;
} // namespace cuda

} // namespace neuroscale::kernels
