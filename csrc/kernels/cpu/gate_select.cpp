// Parts of the batch in parallel: first reasons and counts, then, with the offset of each part known, the compaction.
#include "neuroscale/kernels/gate_select.h"

#include "parallel.h"

#include <limits>

namespace neuroscale::kernels::cpu {

// The piece of the curve that holds `score`: the first knot above it, found by halving.
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

constexpr std::int64_t tile = 256;
constexpr std::int64_t few_knots = 64;

// The curve's pieces between `j` knots at or below a score and the next: slope, knot and level where they begin.
template <typename T>
struct Pieces {
    T slope[few_knots + 1];
    T knot[few_knots + 1];
    T level[few_knots + 1];

    NEUROSCALE_INLINE explicit Pieces(const Selection<T>& s) {
        const std::int64_t count = s.curve <= few_knots ? s.curve : 0;
        for (std::int64_t j = 0; j <= count; ++j) {
            const bool sloped = j > 0 && j < count;
            slope[j] = sloped ? (s.levels[j] - s.levels[j - 1]) / (s.knots[j] - s.knots[j - 1]) : T(0);
            knot[j] = sloped ? s.knots[j - 1] : T(0);
            level[j] = count == 0 ? T(0) : s.levels[j > 0 ? j - 1 : 0];
        }
    }
};

// error[first ... first + count - 1]. With few knots, counting those at or below each score, side by side for many
// scores, is faster than halving, whose branches nobody can foresee.
template <typename T>
NEUROSCALE_INLINE void estimate(const Selection<T>& s, const Pieces<T>& pieces, std::int64_t first,
                                std::int64_t count) {
    constexpr T infinity = std::numeric_limits<T>::infinity();
    const T* __restrict score = s.score + first;
    T* __restrict error = s.error + first;
    if (s.curve == 0 || s.curve > few_knots) {
        for (std::int64_t i = 0; i < count; ++i) {
            error[i] = s.curve == 0 || !(score[i] - score[i] == T(0)) ? infinity : curve_at(s, score[i]);
        }
        return;
    }
    T below[tile] = {};
    for (std::int64_t j = 0; j < s.curve; ++j) {
        const T knot = s.knots[j];
        for (std::int64_t i = 0; i < count; ++i) {
            below[i] += score[i] >= knot ? T(1) : T(0);
        }
    }
    const T lowest = s.knots[0];
    const T all = static_cast<T>(s.curve);
    for (std::int64_t i = 0; i < count; ++i) {
        const auto j = static_cast<std::int64_t>(below[i]);
        const T sloped = pieces.slope[j] * (score[i] - pieces.knot[j]) + pieces.level[j];
        const T flat = score[i] <= lowest ? s.levels[0] : pieces.level[j];
        const T inside = score[i] <= lowest || below[i] == all ? flat : sloped;
        error[i] = score[i] - score[i] == T(0) ? inside : infinity;
    }
}

template <typename T>
NEUROSCALE_INLINE std::int64_t compare(const Selection<T>& s, std::int64_t first, std::int64_t last) {
    std::int64_t refused = 0;
    for (std::int64_t i = first; i < last; ++i) {
        const T score = s.score[i];
        const bool finite = score - score == T(0);
        const std::uint8_t mine = !finite ? s.not_finite : score <= s.threshold ? std::uint8_t{0} : s.uncertain;
        s.reason[i] = s.reason[i] != 0 ? s.reason[i] : mine;
        refused += s.reason[i] != 0 ? 1 : 0;
    }
    const Pieces<T> pieces(s);
    for (std::int64_t start = first; start < last; start += tile) {
        estimate(s, pieces, start, last - start < tile ? last - start : tile);
    }
    return refused;
}

NEUROSCALE_CLONES static std::int64_t compare_part(const Selection<float>& s, std::int64_t first, std::int64_t last) {
    return compare(s, first, last);
}

NEUROSCALE_CLONES static std::int64_t compare_part(const Selection<double>& s, std::int64_t first, std::int64_t last) {
    return compare(s, first, last);
}

static void compact(const std::uint8_t* reason, std::int64_t first, std::int64_t last, std::int64_t* refused) {
    for (std::int64_t i = first; i < last; ++i) {
        if (reason[i] != 0) {
            *refused++ = i;
        }
    }
}

template <typename T>
void gate_select(const Selection<T>& s) noexcept {
    const bool threads = s.n * std::int64_t(2 * sizeof(T) + 1) >= worth_threads;
    const auto start_of = [&](std::int64_t p) {
        return s.n / s.parts_count * p + s.n % s.parts_count * p / s.parts_count;
    };
#pragma omp parallel for schedule(static) if (threads)
    for (std::int64_t p = 0; p < s.parts_count; ++p) {
        s.parts[p] = compare_part(s, start_of(p), start_of(p + 1));
    }
    std::int64_t count = 0;
    for (std::int64_t p = 0; p <= s.parts_count; ++p) {
        const std::int64_t mine = p < s.parts_count ? s.parts[p] : 0;
        s.parts[p] = count;
        count += mine;
    }
    if (count == 0) {
        return;
    }
#pragma omp parallel for schedule(static) if (threads)
    for (std::int64_t p = 0; p < s.parts_count; ++p) {
        if (s.parts[p + 1] > s.parts[p]) {
            compact(s.reason, start_of(p), start_of(p + 1), s.refused + s.parts[p]);
        }
    }
}

template void gate_select<float>(const Selection<float>&) noexcept;
template void gate_select<double>(const Selection<double>&) noexcept;

} // namespace neuroscale::kernels::cpu
