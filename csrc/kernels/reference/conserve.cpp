// Plain loops, to be checked by eye; every other backend is tested against this one.
#include "neuroscale/kernels/conserve.h"

#include <cmath>

namespace neuroscale::kernels::reference {

struct Sums {
    double high = 0.0;
    double low = 0.0;
    double size = 0.0;
    double stiffness = 0.0;
    double largest = 0.0;

    // TwoSum keeps what the sum rounds away.
    void add_product(double term) {
        const double sum = high + term;
        const double part = sum - high;
        low += (high - (sum - part)) + (term - part);
        high = sum;
    }

    void add(const Sums& other) {
        add_product(other.high);
        low += other.low;
        size += other.size;
        stiffness += other.stiffness;
        largest = other.largest > largest ? other.largest : largest;
    }
};

// The changed value of a point that is not exact; `free` says whether it is at no bound.
template <typename T>
static T changed(const Balances<T>& b, std::int64_t at, double weight, double nu, bool& free) {
    const T moved = static_cast<T>(static_cast<double>(b.values[at]) + nu * weight);
    free = true;
    if (b.lower != nullptr && moved < b.lower[at]) {
        free = false;
        return b.lower[at];
    }
    if (b.lower != nullptr && moved > b.upper[at]) {
        free = false;
        return b.upper[at];
    }
    return moved;
}

template <typename T>
static void add_point(const Balances<T>& b, std::int64_t row, std::int64_t at, double nu, Sums& sums) {
    const double volume = static_cast<double>(b.volumes[row]);
    const double weight = volume * static_cast<double>(b.variance[row]);
    bool free = false;
    const T value = weight == 0.0 ? b.values[at] : changed(b, at, weight, nu, free);
    const double product = volume * static_cast<double>(value);
    sums.add_product(product);
    sums.size += std::fabs(product);
    if (free) {
        const double stiffness = volume * weight;
        sums.stiffness += stiffness;
        sums.largest = stiffness > sums.largest ? stiffness : sums.largest;
    }
}

// Sum i takes sum i + count / 2, then i + count / 4, and so on.
template <int count>
static const Sums& halved(Sums (&sums)[count]) {
    for (int half = count / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) {
            sums[i].add(sums[i + half]);
        }
    }
    return sums[0];
}

template <typename T>
static Sums chunk_sums(const Balances<T>& b, std::int64_t chunk, std::int64_t j) {
    const double nu = b.multiplier[b.chunk_segment[chunk] * b.k + j];
    Sums lane[conserve_lanes];
    for (std::int64_t e = b.chunks[chunk]; e < b.chunks[chunk + 1]; ++e) {
        const std::int64_t row = b.entries == nullptr ? e : b.entries[e];
        add_point(b, row, row * b.stride + b.columns[j], nu, lane[(e - b.chunks[chunk]) % conserve_lanes]);
    }
    return halved(lane);
}

template <typename T>
void conserve_sums(const Balances<T>& b, double*, double* sums) noexcept {
    for (std::int64_t item = 0; item < b.segments * b.k; ++item) {
        const std::int64_t first = b.segment_chunks[item / b.k];
        const std::int64_t last = b.segment_chunks[item / b.k + 1];
        Sums lane[conserve_segment_lanes];
        for (std::int64_t chunk = first; chunk < last; ++chunk) {
            lane[(chunk - first) % conserve_segment_lanes].add(chunk_sums(b, chunk, item % b.k));
        }
        const Sums& whole = halved(lane);
        double* out = sums + item * conserve_sums_count;
        out[0] = whole.high;
        out[1] = whole.low;
        out[2] = whole.size;
        out[3] = whole.stiffness;
        out[4] = whole.largest;
    }
}

template <typename T>
void conserve_apply(const Balances<T>& b) noexcept {
    for (std::int64_t chunk = 0; chunk < b.chunk_count; ++chunk) {
        for (std::int64_t e = b.chunks[chunk]; e < b.chunks[chunk + 1]; ++e) {
            const std::int64_t row = b.entries == nullptr ? e : b.entries[e];
            const double weight = static_cast<double>(b.volumes[row]) * static_cast<double>(b.variance[row]);
            for (std::int64_t j = 0; j < b.k && weight != 0.0; ++j) {
                const std::int64_t at = row * b.stride + b.columns[j];
                bool free = false;
                b.values[at] = changed(b, at, weight, b.multiplier[b.chunk_segment[chunk] * b.k + j], free);
            }
        }
    }
}

template void conserve_sums<float>(const Balances<float>&, double*, double*) noexcept;
template void conserve_sums<double>(const Balances<double>&, double*, double*) noexcept;
template void conserve_apply<float>(const Balances<float>&) noexcept;
template void conserve_apply<double>(const Balances<double>&) noexcept;

} // namespace neuroscale::kernels::reference
