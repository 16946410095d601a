// Factor 3 in explicit vectors: the column sums of three vectors are sorted into the first, second and third columns of
// the blocks without leaving the registers.
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

// The sums down three rows (volume: the rows of three planes) of the columns at `a`.
template <bool volume, typename T>
NEUROSCALE_INLINE void add_three_down(const T* a, std::int64_t to_row, std::int64_t to_plane, Values<T>& sum) {
    Values<T> next;
    load(a, sum);
    for (int row = 1; row < (volume ? 9 : 3); ++row) {
        load(a + row / 3 * to_plane + row % 3 * to_row, next);
        sum += next;
    }
}

// A vector of coarse values, each the sum of its 9 (volume: 27) cells divided by `cells`.
template <bool volume, typename T>
NEUROSCALE_INLINE void third_values(const T* from, std::int64_t to_row, std::int64_t to_plane, T cells, T* out) {
    constexpr auto lanes = std::make_integer_sequence<int, Vector<T>::lanes>{};
    Values<T> a, b, c, sum, next;
    add_three_down<volume>(from, to_row, to_plane, a);
    add_three_down<volume>(from + Vector<T>::lanes, to_row, to_plane, b);
    add_three_down<volume>(from + 2 * Vector<T>::lanes, to_row, to_plane, c);
    pick_third<0, T>(a, b, c, sum, lanes);
    pick_third<1, T>(a, b, c, next, lanes);
    sum += next;
    pick_third<2, T>(a, b, c, next, lanes);
    sum += next;
    store<T>(sum / cells, out);
}

// The same for one value.
template <bool volume, typename T>
NEUROSCALE_INLINE void third_value(const T* from, std::int64_t to_row, std::int64_t to_plane, T cells, T* out) {
    T column[3];
    for (int x = 0; x < 3; ++x) {
        column[x] = from[x];
        for (int row = 1; row < (volume ? 9 : 3); ++row) {
            column[x] += from[x + row / 3 * to_plane + row % 3 * to_row];
        }
    }
    *out = (column[0] + column[1] + column[2]) / cells;
}

// One coarse row of n values; the last vector may repeat some of the one before.
template <bool volume, typename T>
NEUROSCALE_INLINE void third_row(const T* from, std::int64_t to_row, std::int64_t to_plane, std::int64_t n, T cells,
                                 T* out) {
    constexpr std::int64_t lanes = Vector<T>::lanes;
    for (std::int64_t i = 0; n < lanes && i < n; ++i) {
        third_value<volume>(from + 3 * i, to_row, to_plane, cells, out + i);
    }
    for (std::int64_t i = 0; n >= lanes && i < n; i += lanes) {
        const std::int64_t at = i + lanes <= n ? i : n - lanes;
        third_values<volume>(from + 3 * at, to_row, to_plane, cells, out + at);
    }
}

// Coarse rows first ... last - 1 for k = 3 in vectors; the first that is left.
template <bool volume, typename T>
NEUROSCALE_INLINE std::int64_t third(const T* source, const Level& level, std::int64_t first, std::int64_t last,
                                     T cells, T* out) {
    const std::int64_t n = level.coarse_width();
    if (n < Vector<T>::lanes) {
        return first;
    }
    const T* from = source + level.source(first);
    for (std::int64_t row = first; row < last; ++row, from += 3 * level.width) {
        third_row<volume>(from, level.width, level.height * level.width, n, cells, out + row * n);
    }
    return last;
}

} // namespace neuroscale::kernels::cpu
