// Factors 3 and 4 in explicit vectors: the column sums of K vectors are sorted into the first, second ... column of the
// blocks without leaving the registers.
#pragma once

#include "halve.h"
#include "level.h"
#include "parallel.h"

#include <utility>

namespace neuroscale::kernels::cpu {

// Column `which` of block `i` of the row (a, b, c) lies in this lane of one of the three. As the number of lanes is no
// multiple of 3, the blocks of a vector have different lanes: a blend of the three collects them, one shuffle sorts
// them.
constexpr int third_lane(int lanes, int i, int which) {
    return (3 * i + which) % lanes;
}

// The vector (0, 1, 2) in which the blend finds its lane `lane`.
constexpr int third_vector(int lanes, int lane, int which) {
    int i = 0;
    while (third_lane(lanes, i, which) != lane) {
        ++i;
    }
    return (3 * i + which) / lanes;
}

// Column `which` of every block of the row (a, b, c), in order.
template <int which, typename T, int... lane>
NEUROSCALE_INLINE void pick_third(const Values<T>& a, const Values<T>& b, const Values<T>& c, Values<T>& to,
                                  std::integer_sequence<int, lane...>) {
    constexpr int n = Vector<T>::lanes;
#if defined(__clang__)
    to = __builtin_shufflevector(a, b, (third_vector(n, lane, which) == 1 ? n + lane : lane)...);
    to = __builtin_shufflevector(to, c, (third_vector(n, lane, which) == 2 ? n + lane : lane)...);
    to = __builtin_shufflevector(to, to, third_lane(n, lane, which)...);
#else
    using Mask = typename Vector<T>::Mask;
    to = __builtin_shuffle(a, b, Mask{(third_vector(n, lane, which) == 1 ? n + lane : lane)...});
    to = __builtin_shuffle(to, c, Mask{(third_vector(n, lane, which) == 2 ? n + lane : lane)...});
    to = __builtin_shuffle(to, Mask{third_lane(n, lane, which)...});
#endif
}

// The sum of the columns of every block of the row v[0], v[1] ..., from left to right.
template <typename T>
NEUROSCALE_INLINE void add_across(const Values<T> (&v)[3], Values<T>& sum) {
    constexpr auto lanes = std::make_integer_sequence<int, Vector<T>::lanes>{};
    Values<T> next;
    pick_third<0, T>(v[0], v[1], v[2], sum, lanes);
    pick_third<1, T>(v[0], v[1], v[2], next, lanes);
    sum += next;
    pick_third<2, T>(v[0], v[1], v[2], next, lanes);
    sum += next;
}

// Columns 0 and 2 are the even ones, twice sorted.
template <typename T>
NEUROSCALE_INLINE void add_across(const Values<T> (&v)[4], Values<T>& sum) {
    constexpr auto lanes = std::make_integer_sequence<int, Vector<T>::lanes>{};
    Values<T> left, right, column[4];
    pick<1, 0, T>(v[0], v[1], left, lanes);
    pick<1, 0, T>(v[2], v[3], right, lanes);
    pick<1, 0, T>(left, right, column[0], lanes);
    pick<1, 1, T>(left, right, column[2], lanes);
    pick<1, 1, T>(v[0], v[1], left, lanes);
    pick<1, 1, T>(v[2], v[3], right, lanes);
    pick<1, 0, T>(left, right, column[1], lanes);
    pick<1, 1, T>(left, right, column[3], lanes);
    sum = ((column[0] + column[1]) + column[2]) + column[3];
}

// The sums down K rows (volume: the rows of K planes) of the columns at `a`.
template <int K, bool volume, typename T>
NEUROSCALE_INLINE void add_down(const T* a, std::int64_t to_row, std::int64_t to_plane, Values<T>& sum) {
    Values<T> next;
    load(a, sum);
    for (int row = 1; row < (volume ? K * K : K); ++row) {
        load(a + row / K * to_plane + row % K * to_row, next);
        sum += next;
    }
}

// A vector of coarse values, each the sum of its cells divided by `cells`.
template <int K, bool volume, typename T>
NEUROSCALE_INLINE void block_values(const T* from, std::int64_t to_row, std::int64_t to_plane, T cells, T* out) {
    Values<T> column[K], sum;
    for (int v = 0; v < K; ++v) {
        add_down<K, volume>(from + v * Vector<T>::lanes, to_row, to_plane, column[v]);
    }
    add_across<T>(column, sum);
    store<T>(K == 4 ? sum * (T(1) / cells) : sum / cells, out); // exact for powers of two
}

// The same for one value.
template <int K, bool volume, typename T>
NEUROSCALE_INLINE void block_value(const T* from, std::int64_t to_row, std::int64_t to_plane, T cells, T* out) {
    T sum = T(0);
    for (int x = 0; x < K; ++x) {
        T column = from[x];
        for (int row = 1; row < (volume ? K * K : K); ++row) {
            column += from[x + row / K * to_plane + row % K * to_row];
        }
        sum = x == 0 ? column : sum + column;
    }
    *out = sum / cells;
}

// One coarse row of n values; the last vector may repeat some of the one before.
template <int K, bool volume, typename T>
NEUROSCALE_INLINE void block_row(const T* from, std::int64_t to_row, std::int64_t to_plane, std::int64_t n, T cells,
                                 T* out) {
    constexpr std::int64_t lanes = Vector<T>::lanes;
    for (std::int64_t i = 0; n < lanes && i < n; ++i) {
        block_value<K, volume>(from + K * i, to_row, to_plane, cells, out + i);
    }
    for (std::int64_t i = 0; n >= lanes && i < n; i += lanes) {
        const std::int64_t at = i + lanes <= n ? i : n - lanes;
        block_values<K, volume>(from + K * at, to_row, to_plane, cells, out + at);
    }
}

// Coarse rows first ... last - 1 in vectors; the first that is left.
template <int K, bool volume, typename T>
NEUROSCALE_INLINE std::int64_t block_rows(const T* source, const Level& level, std::int64_t first, std::int64_t last,
                                          T cells, T* out) {
    const std::int64_t n = level.coarse_width();
    if (n < Vector<T>::lanes) {
        return first;
    }
    const T* from = source + level.source(first);
    for (std::int64_t row = first; row < last; ++row, from += K * level.width) {
        block_row<K, volume>(from, level.width, level.height * level.width, n, cells, out + row * n);
    }
    return last;
}

} // namespace neuroscale::kernels::cpu
