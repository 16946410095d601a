// Parts of the batch in parallel: first reasons and counts, then, with the offset of each part known, the compaction.
#include "neuroscale/kernels/gate_select.h"

#include "curve.h"
#include "parallel.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace neuroscale::kernels::cpu {

// Points whose scores, reasons and errors stay at hand between the loops over them.
constexpr int tile = 240;

// The piece of a curve of many knots that holds `score`: the first knot above it, found by halving.
template <typename T>
NEUROSCALE_INLINE T curve_at(const Selection<T>& s, T score) {
    if (score <= s.knots[0]) {
        return s.levels[0];
    }
    std::int64_t low = 1;
    std::int64_t high = s.curve;
    while (low < high) {
        const std::int64_t middle = low + (high - low) / 2;
        if (score < s.knots[middle]) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    if (low == s.curve) {
        return s.levels[s.curve - 1];
    }
    const T slope = (s.levels[low] - s.levels[low - 1]) / (s.knots[low] - s.knots[low - 1]);
    return slope * (score - s.knots[low - 1]) + s.levels[low - 1];
}

template <typename T>
NEUROSCALE_INLINE bool all_finite(const T* score, int count) {
    int odd = 0;
    for (int i = 0; i < count; ++i) {
        odd |= score[i] - score[i] == T(0) ? 0 : 1;
    }
    return odd == 0;
}

// Reasons of a tile, and how many are refused. Each loop is of a kind that compilers put into vectors.
template <typename T>
NEUROSCALE_INLINE int judge(const Selection<T>& s, const T* __restrict score, std::uint8_t* __restrict reason,
                            int count, bool finite) {
    static_assert(tile < 256, "a byte counts the refused");
    const T threshold = s.threshold;
    const std::uint8_t uncertain = s.uncertain;
    std::uint8_t mine[tile];
#pragma omp simd
    for (int i = 0; i < count; ++i) {
        mine[i] = score[i] <= threshold ? std::uint8_t{0} : uncertain;
    }
    for (int i = 0; i < count && !finite; ++i) {
        mine[i] = score[i] - score[i] == T(0) ? mine[i] : s.not_finite;
    }
    for (int i = 0; i < count; ++i) {
        const std::uint8_t before = reason[i];
        const std::uint8_t now = mine[i];
        reason[i] = before != 0 ? before : now;
    }
    std::uint8_t refused = 0;
    for (int i = 0; i < count; ++i) {
        refused = static_cast<std::uint8_t>(refused + (reason[i] != 0 ? 1 : 0));
    }
    return refused;
}

// Errors of a tile.
template <typename T>
NEUROSCALE_INLINE void estimate(const Selection<T>& s, const Curve<T>& curve, const T* __restrict score,
                                T* __restrict error, int count, bool finite) {
    constexpr T infinity = std::numeric_limits<T>::infinity();
    if (s.curve == 0) {
        std::fill(error, error + count, infinity);
        return;
    }
    if (curve.is_usable()) {
        curve.estimate(score, error, count);
    } else {
        for (int i = 0; i < count; ++i) {
            error[i] = curve_at(s, score[i]);
        }
    }
    for (int i = 0; i < count && !finite; ++i) {
        error[i] = score[i] - score[i] == T(0) ? error[i] : infinity;
    }
}

template <typename T>
NEUROSCALE_INLINE std::int64_t compare(const Selection<T>& s, const Curve<T>& curve, std::int64_t first,
                                       std::int64_t last) {
    std::int64_t refused = 0;
    for (std::int64_t start = first; start < last; start += tile) {
        const int count = static_cast<int>(std::min<std::int64_t>(last - start, tile));
        const bool finite = all_finite(s.score + start, count);
        refused += judge(s, s.score + start, s.reason + start, count, finite);
        estimate(s, curve, s.score + start, s.error + start, count, finite);
    }
    return refused;
}

NEUROSCALE_CLONES static std::int64_t compare_part(const Selection<float>& s, const Curve<float>& curve,
                                                   std::int64_t first, std::int64_t last) {
    return compare(s, curve, first, last);
}

NEUROSCALE_CLONES static std::int64_t compare_part(const Selection<double>& s, const Curve<double>& curve,
                                                   std::int64_t first, std::int64_t last) {
    return compare(s, curve, first, last);
}

// Bit i says whether reason[i] is not 0; up to 64.
NEUROSCALE_INLINE std::uint64_t reasons_of(const std::uint8_t* reason, std::int64_t count) {
    std::uint64_t bits = 0;
    for (std::int64_t i = 0; i < count; ++i) {
        bits |= std::uint64_t{reason[i] != 0} << i;
    }
    return bits;
}

// The same of 64, eight at a time in one number, whose lowest byte is the first in memory.
NEUROSCALE_INLINE std::uint64_t reasons_of_64(const std::uint8_t* reason) {
    constexpr std::uint64_t low = 0x7f7f7f7f7f7f7f7f;
    std::uint64_t bits = 0;
    for (int k = 0; k < 64; k += 8) {
        std::uint64_t eight = 0;
        std::memcpy(&eight, reason + k, 8);
        const std::uint64_t some = (((eight & low) + low) | eight) & ~low; // the highest bit of each byte
        bits |= ((some >> 7) * 0x0102040810204080 >> 56) << k;
    }
    return bits;
}

NEUROSCALE_CLONES static void compact(const std::uint8_t* reason, std::int64_t first, std::int64_t last,
                                      std::int64_t* refused) {
    constexpr bool lowest_first = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__;
    for (std::int64_t i = first; i < last; i += 64) {
        const std::int64_t count = std::min<std::int64_t>(last - i, 64);
        std::uint64_t bits = lowest_first && count == 64 ? reasons_of_64(reason + i) : reasons_of(reason + i, count);
        for (; bits != 0; bits &= bits - 1) {
            *refused++ = i + __builtin_ctzll(bits);
        }
    }
}

template <typename T>
void gate_select(const Selection<T>& s) noexcept {
    const bool threads = s.n * std::int64_t(2 * sizeof(T) + 1) >= worth_threads;
    const auto start_of = [&](std::int64_t p) {
        return s.n / s.parts_count * p + s.n % s.parts_count * p / s.parts_count;
    };
    const Curve<T> curve(s);
    share(
        s.parts_count, [&](std::int64_t p) { s.parts[p] = compare_part(s, curve, start_of(p), start_of(p + 1)); },
        threads);
    std::int64_t count = 0;
    for (std::int64_t p = 0; p <= s.parts_count; ++p) {
        const std::int64_t mine = p < s.parts_count ? s.parts[p] : 0;
        s.parts[p] = count;
        count += mine;
    }
    if (count == 0) {
        return;
    }
    share(
        s.parts_count,
        [&](std::int64_t p) {
            if (s.parts[p + 1] > s.parts[p]) {
                compact(s.reason, start_of(p), start_of(p + 1), s.refused + s.parts[p]);
            }
        },
        threads);
}

template void gate_select<float>(const Selection<float>&) noexcept;
template void gate_select<double>(const Selection<double>&) noexcept;

} // namespace neuroscale::kernels::cpu
