// Chunks in parallel, each into its own place of `parts`; the calling thread adds the parts of the segments. The eight
// partial sums of a chunk lie side by side, so that one instruction serves several of them.
#include "neuroscale/kernels/conserve.h"

#include "parallel.h"

#include <algorithm>
#include <cmath>

namespace neuroscale::kernels::cpu {

constexpr int lanes = conserve_lanes;

struct Lanes {
    double high[lanes] = {};
    double low[lanes] = {};
    double size[lanes] = {};
    double stiffness[lanes] = {};
    double largest[lanes] = {};
};

NEUROSCALE_INLINE void add_to(double* sums, const double* other) {
    const double sum = sums[0] + other[0];
    const double part = sum - sums[0];
    sums[1] += (sums[0] - (sum - part)) + (other[0] - part);
    sums[1] += other[1];
    sums[0] = sum;
    sums[2] += other[2];
    sums[3] += other[3];
    sums[4] = other[4] > sums[4] ? other[4] : sums[4];
}

// The sum of all eight in place 0: each half is added to the other.
NEUROSCALE_INLINE void halve(Lanes& s) {
    for (int half = lanes / 2; half > 0; half /= 2) {
        for (int e = 0; e < half; ++e) {
            const double high = s.high[e + half];
            const double sum = s.high[e] + high;
            const double part = sum - s.high[e];
            s.low[e] += (s.high[e] - (sum - part)) + (high - part);
            s.low[e] += s.low[e + half];
            s.high[e] = sum;
            s.size[e] += s.size[e + half];
            s.stiffness[e] += s.stiffness[e + half];
            s.largest[e] = s.largest[e + half] > s.largest[e] ? s.largest[e + half] : s.largest[e];
        }
    }
}

// y' of one point, and through `bound` whether it was moved to a bound; without branches.
template <bool Bounded, typename T>
NEUROSCALE_INLINE T changed(const Balances<T>& b, std::int64_t at, double weight, double nu, bool& bound) {
    const T old = b.values[at];
    T moved = static_cast<T>(static_cast<double>(old) + nu * weight);
    bound = false;
    if (Bounded) {
        const T low = b.lower[at];
        const T high = b.upper[at];
        const bool under = moved < low;
        const bool over = !under && moved > high;
        moved = under ? low : over ? high : moved;
        bound = under || over;
    }
    return weight == 0.0 ? old : moved;
}

template <bool Bounded, bool Direct, typename T>
NEUROSCALE_INLINE void add_points(const Balances<T>& b, std::int64_t start, int count, std::int64_t column, double nu,
                                  Lanes& s) {
    for (int e = 0; e < count; ++e) {
        const std::int64_t row = Direct ? start + e : b.entries[start + e];
        const double volume = static_cast<double>(b.volumes[row]);
        const double weight = volume * static_cast<double>(b.variance[row]);
        bool bound = false;
        const T value = changed<Bounded>(b, row * b.stride + column, weight, nu, bound);
        const double product = volume * static_cast<double>(value);
        const double sum = s.high[e] + product;
        const double part = sum - s.high[e];
        s.low[e] += (s.high[e] - (sum - part)) + (product - part);
        s.high[e] = sum;
        s.size[e] += std::fabs(product);
        const double stiffness = bound ? 0.0 : volume * weight;
        s.stiffness[e] += stiffness;
        s.largest[e] = stiffness > s.largest[e] ? stiffness : s.largest[e];
    }
}

template <bool Bounded, bool Direct, typename T>
NEUROSCALE_INLINE void sum_chunks(const Balances<T>& b, std::int64_t first, std::int64_t last, double* parts) {
    for (std::int64_t item = first * b.k; item < last * b.k; ++item) {
        const std::int64_t chunk = item / b.k;
        const std::int64_t column = b.columns[item % b.k];
        const double nu = b.multiplier[b.chunk_segment[chunk] * b.k + item % b.k];
        Lanes s;
        std::int64_t start = b.chunks[chunk];
        for (; start + lanes <= b.chunks[chunk + 1]; start += lanes) {
            add_points<Bounded, Direct>(b, start, lanes, column, nu, s);
        }
        add_points<Bounded, Direct>(b, start, static_cast<int>(b.chunks[chunk + 1] - start), column, nu, s);
        halve(s);
        double* out = parts + item * conserve_sums_count;
        out[0] = s.high[0];
        out[1] = s.low[0];
        out[2] = s.size[0];
        out[3] = s.stiffness[0];
        out[4] = s.largest[0];
    }
}

template <typename T>
NEUROSCALE_INLINE void sum_any(const Balances<T>& b, std::int64_t first, std::int64_t last, double* parts) {
    if (b.lower != nullptr) {
        return b.entries == nullptr ? sum_chunks<true, true>(b, first, last, parts)
                                    : sum_chunks<true, false>(b, first, last, parts);
    }
    return b.entries == nullptr ? sum_chunks<false, true>(b, first, last, parts)
                                : sum_chunks<false, false>(b, first, last, parts);
}

template <bool Bounded, typename T>
NEUROSCALE_INLINE void apply_chunks(const Balances<T>& b, std::int64_t first, std::int64_t last) {
    for (std::int64_t chunk = first; chunk < last; ++chunk) {
        const double* nu = b.multiplier + b.chunk_segment[chunk] * b.k;
        for (std::int64_t e = b.chunks[chunk]; e < b.chunks[chunk + 1]; ++e) {
            const std::int64_t row = b.entries == nullptr ? e : b.entries[e];
            const double weight = static_cast<double>(b.volumes[row]) * static_cast<double>(b.variance[row]);
            for (std::int64_t j = 0; j < b.k; ++j) {
                const std::int64_t at = row * b.stride + b.columns[j];
                bool bound = false;
                b.values[at] = changed<Bounded>(b, at, weight, nu[j], bound);
            }
        }
    }
}

template <typename T>
NEUROSCALE_INLINE void apply_any(const Balances<T>& b, std::int64_t first, std::int64_t last) {
    return b.lower == nullptr ? apply_chunks<false>(b, first, last) : apply_chunks<true>(b, first, last);
}

NEUROSCALE_CLONES static void sum_part(const Balances<float>& b, std::int64_t first, std::int64_t last, double* parts) {
    sum_any(b, first, last, parts);
}

NEUROSCALE_CLONES static void sum_part(const Balances<double>& b, std::int64_t first, std::int64_t last,
                                       double* parts) {
    sum_any(b, first, last, parts);
}

NEUROSCALE_CLONES static void apply_part(const Balances<float>& b, std::int64_t first, std::int64_t last) {
    apply_any(b, first, last);
}

NEUROSCALE_CLONES static void apply_part(const Balances<double>& b, std::int64_t first, std::int64_t last) {
    apply_any(b, first, last);
}

// The sums of column j of a segment from its parts; no more partial sums than there are parts.
template <typename T>
static void add_parts(const Balances<T>& b, std::int64_t segment, std::int64_t j, const double* parts, double* out) {
    const std::int64_t first = b.segment_chunks[segment];
    const std::int64_t count = b.segment_chunks[segment + 1] - first;
    const double* part = parts + (first * b.k + j) * conserve_sums_count;
    if (count == 1) { // many small groups
        std::copy(part, part + conserve_sums_count, out);
        return;
    }
    double lane[conserve_segment_lanes][conserve_sums_count];
    const std::int64_t used = std::min(std::max(count, std::int64_t{1}), std::int64_t{conserve_segment_lanes});
    std::fill(lane[0], lane[used], 0.0);
    for (std::int64_t p = 0; p < count; ++p) {
        add_to(lane[p % conserve_segment_lanes], part + p * b.k * conserve_sums_count);
    }
    for (std::int64_t half = conserve_segment_lanes / 2; half > 0; half /= 2) {
        for (std::int64_t i = 0; i + half < used && i < half; ++i) {
            add_to(lane[i], lane[i + half]);
        }
    }
    std::copy(lane[0], lane[1], out);
}

template <typename T>
static bool use_threads(const Balances<T>& b) {
    return b.n * (b.k + 2) * std::int64_t(sizeof(T)) >= worth_threads;
}

template <typename T>
void conserve_sums(const Balances<T>& b, double* parts, double* sums) noexcept {
    const bool threads = use_threads(b);
#pragma omp parallel for schedule(static) if (threads)
    for (std::int64_t chunk = 0; chunk < b.chunk_count; ++chunk) {
        sum_part(b, chunk, chunk + 1, parts);
    }
    for (std::int64_t g = 0; g < b.segments; ++g) {
        for (std::int64_t j = 0; j < b.k; ++j) {
            add_parts(b, g, j, parts, sums + (g * b.k + j) * conserve_sums_count);
        }
    }
}

template <typename T>
void conserve_apply(const Balances<T>& b) noexcept {
    const bool threads = use_threads(b);
#pragma omp parallel for schedule(static) if (threads)
    for (std::int64_t chunk = 0; chunk < b.chunk_count; ++chunk) {
        apply_part(b, chunk, chunk + 1);
    }
}

template void conserve_sums<float>(const Balances<float>&, double*, double*) noexcept;
template void conserve_sums<double>(const Balances<double>&, double*, double*) noexcept;
template void conserve_apply<float>(const Balances<float>&) noexcept;
template void conserve_apply<double>(const Balances<double>&) noexcept;

} // namespace neuroscale::kernels::cpu
