// One thread per chunk and column for the parts (the caller's chunks are short on a device), then one thread per
// segment and column that adds its parts in order; one thread per chunk to apply.
#include "neuroscale/kernels/conserve.h"

#include "launch.h"

namespace neuroscale::kernels::cuda {

struct Sums {
    double value[conserve_sums_count] = {};

    __device__ void add_product(double term) {
        const double sum = value[0] + term;
        const double part = sum - value[0];
        value[1] += (value[0] - (sum - part)) + (term - part);
        value[0] = sum;
    }

    __device__ void add(const double* other) {
        add_product(other[0]);
        value[1] += other[1];
        value[2] += other[2];
        value[3] += other[3];
        value[4] = other[4] > value[4] ? other[4] : value[4];
    }
};

template <typename T>
__device__ T changed(const Balances<T>& b, std::int64_t at, double weight, double nu, bool& free) {
    const T moved = static_cast<T>(static_cast<double>(b.values[at]) + nu * weight);
    const bool under = b.lower != nullptr && moved < b.lower[at];
    const bool over = b.lower != nullptr && !under && moved > b.upper[at];
    free = !under && !over;
    return under ? b.lower[at] : over ? b.upper[at] : moved;
}

template <typename T>
__device__ void add_point(const Balances<T>& b, std::int64_t e, std::int64_t column, double nu, Sums& sums) {
    const std::int64_t row = b.entries == nullptr ? e : b.entries[e];
    const std::int64_t at = row * b.stride + column;
    const double volume = static_cast<double>(b.volumes[row]);
    const double weight = volume * static_cast<double>(b.variance[row]);
    bool free = false;
    const T value = weight == 0.0 ? b.values[at] : changed(b, at, weight, nu, free);
    const double product = volume * static_cast<double>(value);
    sums.add_product(product);
    sums.value[2] += product < 0.0 ? -product : product;
    const double stiffness = free ? volume * weight : 0.0;
    sums.value[3] += stiffness;
    sums.value[4] = stiffness > sums.value[4] ? stiffness : sums.value[4];
}

template <typename T>
__global__ void sum_chunks(Balances<T> b, double* parts) {
    for (std::int64_t item = first_item(); item < b.chunk_count * b.k; item += item_step()) {
        const std::int64_t chunk = item / b.k;
        const double nu = b.multiplier[b.chunk_segment[chunk] * b.k + item % b.k];
        Sums lane[conserve_lanes];
        for (std::int64_t start = b.chunks[chunk]; start < b.chunks[chunk + 1]; start += conserve_lanes) {
#pragma unroll
            for (int e = 0; e < conserve_lanes; ++e) {
                if (start + e < b.chunks[chunk + 1]) {
                    add_point(b, start + e, b.columns[item % b.k], nu, lane[e]);
                }
            }
        }
        Sums whole;
        for (int e = 0; e < conserve_lanes; ++e) {
            whole.add(lane[e].value);
        }
        for (int i = 0; i < conserve_sums_count; ++i) {
            parts[item * conserve_sums_count + i] = whole.value[i];
        }
    }
}

template <typename T>
__global__ void add_parts(Balances<T> b, const double* parts, double* sums) {
    for (std::int64_t item = first_item(); item < b.segments * b.k; item += item_step()) {
        const std::int64_t g = item / b.k;
        std::int64_t low = 0; // the first chunk of segment g
        for (std::int64_t high = b.chunk_count; low < high;) {
            const std::int64_t middle = low + (high - low) / 2;
            if (b.chunk_segment[middle] < g) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Sums whole;
        for (; low < b.chunk_count && b.chunk_segment[low] == g; ++low) {
            whole.add(parts + (low * b.k + item % b.k) * conserve_sums_count);
        }
        for (int i = 0; i < conserve_sums_count; ++i) {
            sums[item * conserve_sums_count + i] = whole.value[i];
        }
    }
}

template <typename T>
__global__ void apply(Balances<T> b) {
    for (std::int64_t chunk = first_item(); chunk < b.chunk_count; chunk += item_step()) {
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

template <typename T>
int conserve_sums(const Balances<T>& b, double* parts, double* sums, void* stream) noexcept {
    if (const int error = launch(b.chunk_count * b.k, stream, sum_chunks<T>, b, parts); error != 0) {
        return error;
    }
    return launch(b.segments * b.k, stream, add_parts<T>, b, parts, sums);
}

template <typename T>
int conserve_apply(const Balances<T>& b, void* stream) noexcept {
    return launch(b.chunk_count, stream, apply<T>, b);
}

template int conserve_sums<float>(const Balances<float>&, double*, double*, void*) noexcept;
template int conserve_sums<double>(const Balances<double>&, double*, double*, void*) noexcept;
template int conserve_apply<float>(const Balances<float>&, void*) noexcept;
template int conserve_apply<double>(const Balances<double>&, void*) noexcept;

} // namespace neuroscale::kernels::cuda
