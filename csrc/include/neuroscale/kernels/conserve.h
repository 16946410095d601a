// The smallest variance-weighted change that restores given sums, with bounds kept.
//
//     minimise  sum_i d_i^2 / v_i   subject to   sum_(i in g) V_i (y_i + d_i) = B_g,   low_i <= y_i + d_i <= high_i
//     =>        y_i' = clip(y_i + nu_g V_i v_i, low_i, high_i)
//
// with one multiplier nu per segment g (a group of points, or all points) and column. The caller finds nu from the sums
// that `conserve_sums` returns (Newton: nu += defect / stiffness; one step is exact without bounds), adds the sums of
// other MPI ranks in between, and then lets `conserve_apply` write. A point with V v = 0 is exact: it is not changed,
// not even to stay within its bounds.
//
//     values            T [rows, stride], row-major, contiguous; the columns columns[0 ... k - 1] are balanced
//     volumes V, variance v    T [rows]
//     lower, upper      T [rows, stride], or both nullptr
//     entries           int64 [n], the rows in the order of their segments; nullptr: 0 ... n - 1
//     chunks            int64 [chunk_count + 1], from 0 to n: cuts the entries so that no chunk crosses a segment
//     chunk_segment     int64 [chunk_count], rising: the segment of a chunk
//     segment_chunks    int64 [segments + 1], from 0 to chunk_count: the first chunk of a segment
//     multiplier nu     double [segments, k]
//     parts             double [chunk_count, k, 5], work space
//     sums              double [segments, k, 5], with y' for the given nu:
//         0, 1: sum V y' as high + low     2: sum |V y'|     3: sum V^2 v of the points that are at no bound
//         4: largest V^2 v of them, so that |nu| sqrt(it) is the largest change in standard deviations
//
// T is float or double; sums are made in double, sum V y' in pairs of doubles (TwoSum). One order of the additions for
// all backends: entry e of a chunk goes to partial sum e mod 8 of the chunk, chunk p of a segment to partial sum p mod
// 256 of the segment, each in order; then the partial sums are halved: sum i takes sum i + 4, then i + 2, then i + 1
// (of a segment: i + 128 first). Partial sums that hold nothing change no bit and may be left out. Error of sum V y':
// n 2^-104 sum |V y'| beyond the rounding of the products. All backends agree bit for bit, whatever the number of
// threads. The caller owns all memory; arrays do not overlap. Nothing here allocates, synchronises or throws.
#pragma once

#include <cstdint>

namespace neuroscale::kernels {

constexpr int conserve_lanes = 8;           // partial sums of a chunk
constexpr int conserve_segment_lanes = 256; // and of a segment
constexpr int conserve_sums_count = 5;

template <typename T>
struct Balances {
    T* values; // read only in conserve_sums
    std::int64_t stride;
    const std::int64_t* columns;
    std::int64_t k;
    const T* volumes;
    const T* variance;
    const T* lower;
    const T* upper;
    const std::int64_t* entries;
    std::int64_t n;
    const std::int64_t* chunks;
    const std::int64_t* chunk_segment;
    const std::int64_t* segment_chunks;
    std::int64_t chunk_count;
    std::int64_t segments;
    const double* multiplier;
};

namespace reference {
template <typename T>
void conserve_sums(const Balances<T>& balances, double* parts, double* sums) noexcept;
template <typename T>
void conserve_apply(const Balances<T>& balances) noexcept;
} // namespace reference

namespace cpu {
template <typename T>
void conserve_sums(const Balances<T>& balances, double* parts, double* sums) noexcept;
template <typename T>
void conserve_apply(const Balances<T>& balances) noexcept;
} // namespace cpu

namespace cuda {
// As above, queued on `stream`; all arrays are device memory. Returns a cudaError_t, 0 for success.
template <typename T>
int conserve_sums(const Balances<T>& balances, double* parts, double* sums, void* stream) noexcept;
template <typename T>
int conserve_apply(const Balances<T>& balances, void* stream) noexcept;
} // namespace cuda

} // namespace neuroscale::kernels
