// Two launches for the sums, one to apply; the chunks of Plan (512 entries) are short enough to fill an H100.
//
// sum_chunks: eight neighbouring threads per chunk and column, one for each partial sum. What eight threads load of an
//     array is whole sectors of 32 bytes; the k columns of a chunk lie side by side, so that one warp asks once for
//     their rows, volumes and variances. Read per entry: 2 sizeof(T), its row of `values`, with bounds two rows more,
//     with `entries` 8 bytes. A thread has 8 entries on their way (4 with bounds). 92 registers (float 66, with bounds
//     70 and 56) let 512 to 1024 threads run per SM, with 61 to 123 KB on their way; about 40 KB keep the memory busy.
// add_parts: 40 bytes per chunk and column, read once. One thread where a segment has up to four parts, else a block.
//     64 registers, 10 KB of shared memory.
// apply: one thread per entry and column, 30 to 32 registers: all 2048 threads of an SM. Reads what sum_chunks reads,
//     writes sizeof(T). With groups a block looks up the chunks of its first and last entry, a thread between these.
#include "neuroscale/kernels/conserve.h"

#include "launch.h"

namespace neuroscale::kernels::cuda {

constexpr int warp = 32;
constexpr int few_parts = 4;
constexpr std::int64_t enough_blocks = 1024; // about what an H100 holds at once

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

    // Of `width` neighbouring threads that `mask` names; the first has their sum then.
    __device__ void halve(unsigned mask, int width) {
        for (int half = width / 2; half > 0; half /= 2) {
            double other[conserve_sums_count];
            for (int i = 0; i < conserve_sums_count; ++i) {
                other[i] = __shfl_down_sync(mask, value[i], half, width);
            }
            add(other);
        }
    }

    __device__ void store(double* out) const {
        for (int i = 0; i < conserve_sums_count; ++i) {
            out[i] = value[i];
        }
    }
};

// What is read of one point; the bounds are not where there are none.
template <bool bounded, typename T>
struct Point {
    T volume;
    T variance;
    T value;
    T lower;
    T upper;

    __device__ Point() : volume(0), variance(0), value(0), lower(0), upper(0) {}

    __device__ void load(const Balances<T>& b, std::int64_t row, std::int64_t column) {
        const std::int64_t at = row * b.stride + column;
        volume = b.volumes[row];
        variance = b.variance[row];
        value = b.values[at];
        if (bounded) {
            lower = b.lower[at];
            upper = b.upper[at];
        }
    }

    __device__ double weight() const { return static_cast<double>(volume) * static_cast<double>(variance); }

    // y' of a point that is not exact.
    __device__ T changed(double nu, bool& free) const {
        const T moved = static_cast<T>(static_cast<double>(value) + nu * weight());
        const bool under = bounded && moved < lower;
        const bool over = bounded && !under && moved > upper;
        free = !under && !over;
        return under ? lower : over ? upper : moved;
    }

    __device__ void add_to(Sums& sums, double nu) const {
        bool free = false;
        const T kept = weight() == 0.0 ? value : changed(nu, free);
        const double product = static_cast<double>(volume) * static_cast<double>(kept);
        sums.add_product(product);
        sums.value[2] += product < 0.0 ? -product : product;
        const double stiffness = free ? static_cast<double>(volume) * weight() : 0.0;
        sums.value[3] += stiffness;
        sums.value[4] = stiffness > sums.value[4] ? stiffness : sums.value[4];
    }
};

template <bool bounded, typename T>
__global__ void sum_chunks(Balances<T> b, double* parts) {
    constexpr int ahead = bounded ? 4 : 8;
    const int lane = static_cast<int>(threadIdx.x) % conserve_lanes;
    const unsigned mask = 0xffU << (static_cast<int>(threadIdx.x) % warp - lane);
    for (std::int64_t item = first_item() / conserve_lanes; item < b.chunk_count * b.k;
         item += item_step() / conserve_lanes) {
        const std::int64_t chunk = item / b.k;
        const std::int64_t j = item - chunk * b.k;
        const std::int64_t column = b.columns[j];
        const std::int64_t last = b.chunks[chunk + 1];
        const double nu = b.multiplier[b.chunk_segment[chunk] * b.k + j];
        Sums sums;
        for (std::int64_t e = b.chunks[chunk] + lane; e < last; e += ahead * conserve_lanes) {
            std::int64_t rows[ahead];
            Point<bounded, T> points[ahead];
#pragma unroll
            for (int q = 0; q < ahead; ++q) {
                rows[q] = e + q * conserve_lanes;
                if (b.entries != nullptr && rows[q] < last) {
                    rows[q] = b.entries[rows[q]];
                }
            }
#pragma unroll
            for (int q = 0; q < ahead; ++q) {
                if (e + q * conserve_lanes < last) {
                    points[q].load(b, rows[q], column);
                }
            }
#pragma unroll
            for (int q = 0; q < ahead; ++q) {
                if (e + q * conserve_lanes < last) {
                    points[q].add_to(sums, nu);
                }
            }
        }
        sums.halve(mask, conserve_lanes);
        if (lane == 0) {
            sums.store(parts + item * conserve_sums_count);
        }
    }
}

// The parts of one segment and column: `count` of them from `first` on, `step` apart.
struct Parts {
    const double* first;
    std::int64_t step;
    std::int64_t count;

    template <typename T>
    __device__ Parts(const Balances<T>& b, const double* parts, std::int64_t item) {
        const std::int64_t segment = item / b.k;
        const std::int64_t chunk = b.segment_chunks[segment];
        first = parts + (chunk * b.k + (item - segment * b.k)) * conserve_sums_count;
        step = b.k * conserve_sums_count;
        count = b.segment_chunks[segment + 1] - chunk;
    }
};

__device__ inline void add_few(const Parts& parts, double* out) {
    Sums lane[few_parts];
#pragma unroll
    for (int p = 0; p < few_parts; ++p) {
        if (p < parts.count) {
            lane[p].add(parts.first + p * parts.step);
        }
    }
#pragma unroll
    for (int half = few_parts / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) {
            lane[i].add(lane[i + half].value);
        }
    }
    lane[0].store(out);
}

// By the whole block, one partial sum a thread; the first warp adds up what the warps have.
__device__ inline void add_many(const Parts& parts, double (*shared)[conserve_segment_lanes], double* out) {
    static_assert(conserve_segment_lanes == threads_per_block);
    constexpr int warps = conserve_segment_lanes / warp;
    Sums mine;
#pragma unroll 4
    for (std::int64_t p = threadIdx.x; p < parts.count; p += conserve_segment_lanes) {
        mine.add(parts.first + p * parts.step);
    }
    for (int i = 0; i < conserve_sums_count; ++i) {
        shared[i][threadIdx.x] = mine.value[i];
    }
    __syncthreads();
    if (threadIdx.x < warp) {
        Sums lane[warps];
#pragma unroll
        for (int w = 0; w < warps; ++w) {
            for (int i = 0; i < conserve_sums_count; ++i) {
                lane[w].value[i] = shared[i][w * warp + static_cast<int>(threadIdx.x)];
            }
        }
#pragma unroll
        for (int half = warps / 2; half > 0; half /= 2) {
            for (int w = 0; w < half; ++w) {
                lane[w].add(lane[w + half].value);
            }
        }
        lane[0].halve(0xffffffffU, warp);
        if (threadIdx.x == 0) {
            lane[0].store(out);
        }
    }
    __syncthreads(); // `shared` is free again
}

// per_block segments and columns for each block in turn.
template <typename T>
__global__ void add_parts(Balances<T> b, const double* parts, double* sums, std::int64_t per_block) {
    NEUROSCALE_SHARED(bytes);
    const std::int64_t items = b.segments * b.k;
    for (std::int64_t first = blockIdx.x * per_block; first < items; first += gridDim.x * per_block) {
        const std::int64_t last = first + per_block < items ? first + per_block : items;
        const std::int64_t mine = first + threadIdx.x;
        bool many = false;
        if (mine < last) {
            const Parts few(b, parts, mine);
            many = few.count > few_parts;
            if (!many) {
                add_few(few, sums + mine * conserve_sums_count);
            }
        }
        if (__syncthreads_count(many) == 0) {
            continue;
        }
        for (std::int64_t item = first; item < last; ++item) {
            const Parts of(b, parts, item);
            if (of.count > few_parts) {
                add_many(of, reinterpret_cast<double (*)[conserve_segment_lanes]>(bytes),
                         sums + item * conserve_sums_count);
            }
        }
    }
}

// The chunk of entry e, one of low ... high.
template <typename T>
__device__ std::int64_t chunk_of(const Balances<T>& b, std::int64_t e, std::int64_t low, std::int64_t high) {
    while (low < high) {
        const std::int64_t middle = low + (high - low + 1) / 2;
        if (b.chunks[middle] <= e) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

template <bool bounded, typename T>
__device__ void apply_to(const Balances<T>& b, std::int64_t e, std::int64_t j, std::int64_t segment) {
    const std::int64_t row = b.entries == nullptr ? e : b.entries[e];
    Point<bounded, T> point;
    point.load(b, row, b.columns[j]);
    bool free = false;
    if (point.weight() != 0.0) {
        b.values[row * b.stride + b.columns[j]] = point.changed(b.multiplier[segment * b.k + j], free);
    }
}

// threads_per_block entries for each block in turn.
template <bool bounded, typename T>
__global__ void apply(Balances<T> b) {
    NEUROSCALE_SHARED(bytes);
    std::int64_t* ends = reinterpret_cast<std::int64_t*>(bytes); // chunks of the first and last entry
    const auto k = static_cast<unsigned>(b.k);
    for (std::int64_t first = blockIdx.x * threads_per_block; first < b.n; first += gridDim.x * threads_per_block) {
        const std::int64_t last = first + threads_per_block < b.n ? first + threads_per_block : b.n;
        if (b.segments > 1) {
            __syncthreads(); // nobody still reads those of the entries before
            if (threadIdx.x < 2) {
                ends[threadIdx.x] = chunk_of(b, threadIdx.x == 0 ? first : last - 1, 0, b.chunk_count - 1);
            }
            __syncthreads();
        }
        for (unsigned i = threadIdx.x; i < static_cast<unsigned>(last - first) * k; i += threads_per_block) {
            const std::int64_t e = first + i / k;
            const std::int64_t segment = b.segments > 1 ? b.chunk_segment[chunk_of(b, e, ends[0], ends[1])] : 0;
            apply_to<bounded>(b, e, i % k, segment);
        }
    }
}

template <typename T>
int conserve_sums(const Balances<T>& b, double* parts, double* sums, void* stream) noexcept {
    const std::int64_t threads = b.chunk_count * b.k * conserve_lanes;
    const int error = b.lower == nullptr ? launch(threads, stream, sum_chunks<false, T>, b, parts)
                                         : launch(threads, stream, sum_chunks<true, T>, b, parts);
    if (error != 0) {
        return error;
    }
    const std::int64_t items = b.segments * b.k;
    std::int64_t per_block = (items + enough_blocks - 1) / enough_blocks;
    per_block = per_block < 1 ? 1 : per_block > threads_per_block ? threads_per_block : per_block;
    constexpr std::int64_t shared = conserve_sums_count * conserve_segment_lanes * std::int64_t(sizeof(double));
    return launch_blocks((items + per_block - 1) / per_block, shared, stream, add_parts<T>, b, parts, sums, per_block);
}

template <typename T>
int conserve_apply(const Balances<T>& b, void* stream) noexcept {
    const std::int64_t blocks = (b.n + threads_per_block - 1) / threads_per_block;
    constexpr std::int64_t shared = 2 * std::int64_t(sizeof(std::int64_t));
    return b.lower == nullptr ? launch_blocks(blocks, shared, stream, apply<false, T>, b)
                              : launch_blocks(blocks, shared, stream, apply<true, T>, b);
}

template int conserve_sums<float>(const Balances<float>&, double*, double*, void*) noexcept;
template int conserve_sums<double>(const Balances<double>&, double*, double*, void*) noexcept;
template int conserve_apply<float>(const Balances<float>&, void*) noexcept;
template int conserve_apply<double>(const Balances<double>&, void*) noexcept;

} // namespace neuroscale::kernels::cuda
