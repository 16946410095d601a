// A piecewise linear curve, prepared for many scores. Which piece holds a score is found without a branch, as nobody
// can foresee where the next score lies: its cell on a uniform grid says how many knots lie in the cells below, and
// halving counts those of the cell itself.
#pragma once

#include "neuroscale/kernels/gate_select.h"
#include "parallel.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

namespace neuroscale::kernels::cpu {

template <typename T>
class Curve {
public:
    static constexpr int most_knots = 64;
    static constexpr int most_scores = 256; // that are estimated in one call

    // Not usable without knots or with too many.
    explicit Curve(const Selection<T>& s) : usable(s.curve > 0 && s.curve <= most_knots) {
        if (!usable) {
            return;
        }
        const int count = static_cast<int>(s.curve);
        for (int j = 0; j <= count; ++j) {
            const bool sloped = j > 0 && j < count;
            slope[j] = sloped ? (s.levels[j] - s.levels[j - 1]) / (s.knots[j] - s.knots[j - 1]) : T(0);
            begin[j] = sloped ? s.knots[j - 1] : T(0);
            level[j] = s.levels[j > 0 ? j - 1 : 0];
        }
        // A score at the first knot belongs to the piece below it, at any other to the piece above.
        const T above_first = std::nextafter(s.knots[0], std::numeric_limits<T>::infinity());
        std::fill(std::begin(knots), std::end(knots), std::numeric_limits<T>::quiet_NaN());
        for (int j = 0; j < count; ++j) {
            knots[j] = std::max(s.knots[j], above_first);
        }
        // The last knots may lie far out (calibration.py): a grid that ends before them parts the others better.
        halvings = most_halvings;
        for (int last = count - 1; last >= 0 && last >= count - 3 && halvings > 2; --last) {
            deal(count, knots[last]);
        }
    }

    bool is_usable() const { return usable; }

    // error[i] at score[i], up to most_scores; any number where the score is not finite.
    NEUROSCALE_INLINE void estimate(const T* __restrict score, T* __restrict error, int count) const {
        int cell[most_scores];
        const T from = lowest;
        const T scale = cells_per_score;
#pragma omp simd
        for (int i = 0; i < count; ++i) {
            cell[i] = cell_of(score[i], from, scale);
        }
        switch (halvings) {
        case 1:
            return along<1>(score, error, cell, count);
        case 2:
            return along<2>(score, error, cell, count);
        case 3:
            return along<3>(score, error, cell, count);
        default:
            return along<most_halvings>(score, error, cell, count);
        }
    }

private:
    static constexpr int cells = 512;
    static constexpr int most_halvings = 7; // they count up to 2^7 - 1 knots

    bool usable;
    T slope[most_knots + 1]; // between begin[j] and the next knot: slope[j] * (score - begin[j]) + level[j]
    T begin[most_knots + 1];
    T level[most_knots + 1];
    T knots[most_knots + (1 << (most_halvings - 1))]; // behind the last: no score reaches it
    std::uint8_t below[cells];                        // knots in the cells below
    T lowest;
    T cells_per_score;
    int halvings;

    NEUROSCALE_INLINE static int cell_of(T score, T from, T scale) {
        constexpr T top = cells - 1;
        const T at = (score - from) * scale;
        const T positive = at > T(0) ? at : T(0); // 0 where `at` is not a number
        return static_cast<int>(positive < top ? positive : top);
    }

    // Lays the grid from the first knot to `highest`.
    void deal(int count, T highest) {
        lowest = knots[0];
        cells_per_score = highest > lowest ? T(cells) / (highest - lowest) : T(0);
        int most_in_a_cell = 0;
        for (int c = 0, j = 0; c < cells; ++c) {
            const int first = j;
            while (j < count && cell_of(knots[j], lowest, cells_per_score) <= c) {
                ++j;
            }
            below[c] = static_cast<std::uint8_t>(first);
            most_in_a_cell = j - first > most_in_a_cell ? j - first : most_in_a_cell;
        }
        halvings = 1;
        while ((1 << halvings) - 1 < most_in_a_cell) {
            ++halvings;
        }
    }

    template <int times>
    NEUROSCALE_INLINE void along(const T* __restrict score, T* __restrict error, const int* __restrict cell,
                                 int count) const {
#pragma GCC unroll 4
        for (int i = 0; i < count; ++i) {
            std::int64_t j = below[cell[i]];
            for (int k = times - 1; k >= 0; --k) {
                j += std::int64_t{score[i] >= knots[j + (1 << k) - 1]} << k;
            }
            error[i] = slope[j] * (score[i] - begin[j]) + level[j];
        }
    }
};

} // namespace neuroscale::kernels::cpu
