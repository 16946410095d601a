// Factor 2, the common one, in explicit vectors: column sums are made and every two neighbours added without leaving
// the registers. Rows narrower than a vector lie several to a vector; they are sorted into upper and lower rows first.
#pragma once

#include "level.h"
#include "parallel.h"

#include <utility>

namespace neuroscale::kernels::cpu {

// 32 bytes suit AVX2 and, in half registers, AVX-512; both are memory-bound with them.
#if defined(NEUROSCALE_HAS_TARGET_CLONES) || defined(__AVX2__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif

template <typename T>
struct Vector;

template <>
struct Vector<float> {
    typedef float Values __attribute__((vector_size(vector_bytes)));
    typedef float Loose __attribute__((vector_size(vector_bytes), aligned(alignof(float)), may_alias));
    typedef std::int32_t Mask __attribute__((vector_size(vector_bytes)));
    static constexpr int lanes = vector_bytes / sizeof(float);
};

template <>
struct Vector<double> {
    typedef double Values __attribute__((vector_size(vector_bytes)));
    typedef double Loose __attribute__((vector_size(vector_bytes), aligned(alignof(double)), may_alias));
    typedef std::int64_t Mask __attribute__((vector_size(vector_bytes)));
    static constexpr int lanes = vector_bytes / sizeof(double);
};

template <typename T>
using Values = typename Vector<T>::Values;

template <typename T>
NEUROSCALE_INLINE void load(const T* from, Values<T>& to) {
    to = *reinterpret_cast<const typename Vector<T>::Loose*>(from);
}

template <typename T>
NEUROSCALE_INLINE void store(const Values<T>& from, T* to) {
    *reinterpret_cast<typename Vector<T>::Loose*>(to) = from;
}

// Blocks of `block` lanes of the row (a, b): the even ones (which = 0) or the odd ones (which = 1), in order.
constexpr int lane_of(int lane, int block, int which) {
    return (2 * (lane / block) + which) * block + lane % block;
}

template <int block, int which, typename T, int... lane>
NEUROSCALE_INLINE void pick(const Values<T>& a, const Values<T>& b, Values<T>& to,
                            std::integer_sequence<int, lane...>) {
#if defined(__clang__)
    to = __builtin_shufflevector(a, b, lane_of(lane, block, which)...);
#else
    to = __builtin_shuffle(a, b, typename Vector<T>::Mask{lane_of(lane, block, which)...});
#endif
}

// even blocks + odd blocks of the row (a, b)
template <int block, typename T>
NEUROSCALE_INLINE void add_halves(const Values<T>& a, const Values<T>& b, Values<T>& to) {
    constexpr auto lanes = std::make_integer_sequence<int, Vector<T>::lanes>{};
    Values<T> even, odd;
    pick<block, 0, T>(a, b, even, lanes);
    pick<block, 1, T>(a, b, odd, lanes);
    to = even + odd;
}

// The sums down two rows (volume: the rows of two planes) of the columns at `a`.
template <bool volume, typename T>
NEUROSCALE_INLINE void add_down(const T* a, std::int64_t to_row, std::int64_t to_plane, Values<T>& sum) {
    Values<T> next;
    load(a, sum);
    load(a + to_row, next);
    sum += next;
    if constexpr (volume) {
        load(a + to_plane, next);
        sum += next;
        load(a + to_plane + to_row, next);
        sum += next;
    }
}

// The same where a row fills `width` lanes of a vector or less: of all rows in the two vectors at `a`.
template <bool volume, int width, typename T>
NEUROSCALE_INLINE void add_down_narrow(const T* a, std::int64_t to_plane, Values<T>& sum) {
    constexpr auto lanes = std::make_integer_sequence<int, Vector<T>::lanes>{};
    Values<T> first, second, next;
    load(a, first);
    load(a + Vector<T>::lanes, second);
    add_halves<width, T>(first, second, sum);
    if constexpr (volume) {
        load(a + to_plane, first);
        load(a + to_plane + Vector<T>::lanes, second);
        pick<width, 0, T>(first, second, next, lanes);
        sum += next;
        pick<width, 1, T>(first, second, next, lanes);
        sum += next;
    }
}

// One coarse row of n values, each `share` times the sum of its 4 (volume: 8) cells. distance: where not 0, as many
// cells as are added up are asked for while they are, the first as far ahead of `from` (volumes only).
template <bool volume, typename T>
NEUROSCALE_INLINE void halve_row(const T* __restrict from, std::int64_t to_row, std::int64_t to_plane, std::int64_t n,
                                 T share, T* __restrict out, std::int64_t distance = 0) {
    constexpr std::int64_t lanes = Vector<T>::lanes;
    constexpr std::int64_t size = sizeof(T);
    std::int64_t i = 0;
    for (; i + lanes <= n; i += lanes) {
        if (volume && distance > 0) {
            fetch(from, (distance + 8 * i) * size, 8 * lanes * size);
        }
        Values<T> left, right, sum;
        add_down<volume>(from + 2 * i, to_row, to_plane, left);
        add_down<volume>(from + 2 * i + lanes, to_row, to_plane, right);
        add_halves<1, T>(left, right, sum);
        store<T>(sum * share, out + i);
    }
    for (; i < n; ++i) {
        const T* a = from + 2 * i;
        T left = a[0] + a[to_row];
        T right = a[1] + a[to_row + 1];
        if constexpr (volume) {
            left = (left + a[to_plane]) + a[to_plane + to_row];
            right = (right + a[to_plane + 1]) + a[to_plane + to_row + 1];
        }
        out[i] = (left + right) * share;
    }
}

// n coarse values of neighbouring rows of `width` cells, which end with a full vector.
template <bool volume, int width, typename T>
NEUROSCALE_INLINE void halve_narrow(const T* __restrict from, std::int64_t to_plane, std::int64_t n, T share,
                                    T* __restrict out) {
    constexpr std::int64_t lanes = Vector<T>::lanes;
    for (std::int64_t i = 0; i < n; i += lanes) {
        Values<T> left, right, sum;
        add_down_narrow<volume, width>(from + 4 * i, to_plane, left);
        add_down_narrow<volume, width>(from + 4 * i + 2 * lanes, to_plane, right);
        add_halves<1, T>(left, right, sum);
        store<T>(sum * share, out + i);
    }
}

// Coarse rows first ... last - 1 for k = 2 in vectors; the first that is left. `width` > 0: that of the level, so that
// loops over a row are unrolled; rows of no more than a vector are those of one slice if it is a volume's. distance:
// see halve_row, from the first row on.
template <bool volume, int width, typename T>
NEUROSCALE_INLINE std::int64_t halve_all(const T* source, const Level& level, std::int64_t first, std::int64_t last,
                                         T share, T* out, std::int64_t distance) {
    const std::int64_t n = level.coarse_width();
    const std::int64_t to_plane = level.height * level.width;
    const T* from = source + level.source(first);
    if constexpr (width == 0) {
        for (std::int64_t row = first; row < last; ++row, from += 2 * level.width) {
            const std::int64_t further = distance > 0 ? distance + 2 * level.width * (row - first) : 0;
            halve_row<volume>(from, level.width, to_plane, n, share, out + row * n, further);
        }
        return last;
    } else if constexpr (width >= 2 * Vector<T>::lanes) {
        constexpr std::int64_t across = width;
        constexpr std::int64_t made = across / 2;
        T* to = out + first * made;
        for (std::int64_t row = first; row < last; ++row, from += 2 * across, to += made) {
            const std::int64_t further = distance > 0 ? distance + 2 * across * (row - first) : 0;
            halve_row<volume>(from, across, to_plane, made, share, to, further);
        }
        return last;
    } else {
        constexpr std::int64_t step = 2 * Vector<T>::lanes / width; // coarse rows of a vector
        const std::int64_t whole = (last - first) / step * step;
        halve_narrow<volume, width>(from, to_plane, whole * n, share, out + first * n);
        return first + whole;
    }
}

template <bool volume, typename T>
NEUROSCALE_INLINE std::int64_t halve(const T* source, const Level& level, std::int64_t first, std::int64_t last,
                                     T share, T* out, std::int64_t distance) {
    constexpr int lanes = Vector<T>::lanes;
    if (level.width > 32) {
        return halve_all<volume, 0>(source, level, first, last, share, out, distance);
    }
    switch (level.width) {
    case 32:
        return halve_all<volume, 32>(source, level, first, last, share, out, distance);
    case 16:
        return halve_all<volume, 16>(source, level, first, last, share, out, distance);
    case 2:
        return halve_all<volume, 2>(source, level, first, last, share, out, distance);
    case 4:
        return halve_all<volume, 4>(source, level, first, last, share, out, distance);
    case 8:
        return halve_all<volume, 8>(source, level, first, last, share, out, distance);
    default:
        return level.width < 2 * lanes ? first : halve_all<volume, 0>(source, level, first, last, share, out, distance);
    }
}

} // namespace neuroscale::kernels::cpu
