// A block takes consecutive segments whose entries, times a slab of at most 32 components, fill a tile of 2048 pairs
// (entry, component). Entries of neighbouring segments are neighbours in memory, so all threads read the pairs of a
// tile side by side, eight each, whatever the lengths of its segments; the products wait in shared memory for the order
// of the specification. There a segment's component is one thread's; of a segment of more than `by_warp` entries, eight
// threads take each block of 64 entries, and one adds their sums. A segment beyond a tile goes through it by parts, the
// cells of the next part being read meanwhile. `refine` spreads a tile in the same way.
//
// Expected, from the machine code for sm_90, not measured. Global memory, in order and with whole sectors: per entry 8
// bytes of cell, a weight and the fine values once, per segment 8 bytes of offset and the coarse values; a map in no
// order takes the sectors of 32 bytes that its rows touch. In flight per thread: 8 cells, then 8 weights and 8 values;
// with 3 blocks on a multiprocessor (80 registers, coarsen of double) or 4 (64 registers, the others; at most 13 words
// spilled, once per tile or block) 35 to 100 kB of weights and values, where 3.35 TB/s at a latency of 0.6 us need
// about 15. Instructions per 32 pairs: about 25 for cells, weights, values and products, 7 per round of additions, 60
// per segment and component, 20 for what a tile needs once. A multiprocessor has 84 issue slots for them in the time
// that memory needs for 9 components of double, 47 of float, more than 115 for up to 3 of double: nine of float in
// segments of 8 are bound by instructions. A few segments are bound by their number: each is one block's.
#include "neuroscale/kernels/coarsen_cells.h"

#include "cell_tiles.h"

namespace neuroscale::kernels::cuda {

constexpr int lanes = cell_lanes;
constexpr int chunk = cell_block;
constexpr int groups_per_warp = 32 / lanes;
constexpr int by_warp = 128;
constexpr unsigned whole_warp = 0xffffffffU;

// Where a pair lies in shared memory: the gaps keep threads apart whose segments are 2^n entries long.
__device__ __forceinline__ int slot(int pair) {
    return pair + (pair >> 4) + (pair >> 8);
}

constexpr int slots = most_pairs + (most_pairs >> 4) + (most_pairs >> 8);

// The products of a tile, from memory to their places; beyond the last entry there is room for anything.
template <typename T>
__device__ __forceinline__ void multiply(double* products, const Cells<T>& a, const Work& work, std::int64_t base,
                                         int entries, const std::int64_t (&cell)[entries_per_thread]) {
    if (work.idle()) {
        return;
    }
    T weight[entries_per_thread];
    gather(weight, work, entries, [&](int, unsigned e) { return a.weights == nullptr ? T(1) : a.weights[base + e]; });
    const T* from = a.from + work.k + work.column;
    T value[entries_per_thread];
    gather(value, work, entries, [&](int u, unsigned) { return in_row(from, cell[u], a.stride); });
    work.for_entries([&](int u, int e) { // a condition on each would make the loads before wait for each other
        products[slot(e * work.width + work.column)] = static_cast<double>(weight[u]) * static_cast<double>(value[u]);
    });
}

struct Total {
    double high = 0.0;
    double low = 0.0;

    __device__ __forceinline__ void add(double term) {
        const double sum = high + term;
        const double part = sum - high;
        low += (high - (sum - part)) + (term - part);
        high = sum;
    }
};

// One thread, one component of the segment at entries start ... end - 1 of the tile.
__device__ __forceinline__ Total sum_segment(const double* products, int width, int start, int end, int k) {
    Total total;
    for (int block = start; block < end; block += chunk) {
        const int stop = block + chunk < end ? block + chunk : end;
        double lane[lanes] = {};
        int j = block;
        for (; j + lanes <= stop; j += lanes) {
#pragma unroll
            for (int e = 0; e < lanes; ++e) {
                lane[e] += products[slot((j + e) * width + k)];
            }
        }
#pragma unroll
        for (int e = 0; j < stop && e < lanes - 1; ++e) {
            const double last = products[slot((j + e < stop ? j + e : stop - 1) * width + k)];
            lane[e] += j + e < stop ? last : 0.0;
        }
        total.add(((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7])));
    }
    return total;
}

// The sums of the segment's blocks of 64 entries, each in the place of its first product; eight threads per block and
// component, this warp from number `first` on. Whole warps call it.
__device__ __forceinline__ void sum_chunks(double* products, const Work& work, int start, int end, int first,
                                           int step) {
    const int count = (end - start + chunk - 1) / chunk * work.width;
    const int lane = static_cast<int>(threadIdx.x) % lanes;
    for (int warps = first; warps < count; warps += step) {
        const int own = warps + static_cast<int>(threadIdx.x) % 32 / lanes;
        const int i = own < count ? own : count - 1;
        const int j = start + work.over_width(i) * chunk;
        const int k = i - work.over_width(i) * work.width;
        double sum = 0.0;
#pragma unroll
        for (int e = lane; e < chunk + lane; e += lanes) {
            const double product = products[slot((j + e < end ? j + e : end - 1) * work.width + k)];
            sum += j + e < end ? product : 0.0;
        }
        sum += __shfl_xor_sync(whole_warp, sum, 4, 32);
        sum += __shfl_xor_sync(whole_warp, sum, 2, 32);
        sum += __shfl_xor_sync(whole_warp, sum, 1, 32);
        __syncwarp(whole_warp); // a place may have been read by more threads than those whose sum goes there
        if (lane == 0 && own < count) {
            products[slot(j * work.width + k)] = sum;
        }
    }
}

__device__ __forceinline__ void add_chunks(const double* products, int width, int start, int end, int k, Total& total) {
    for (int j = start; j < end; j += chunk) {
        total.add(products[slot(j * width + k)]);
    }
}

// Segments c ... c + n - 1, which fill a tile.
template <typename T>
__device__ __forceinline__ void coarsen_tile(const Cells<T>& a, const Work& work, std::int64_t c, int n,
                                             double* products, const int* starts) {
    const std::int64_t base = a.map.offsets[c];
    const int entries = static_cast<int>(a.map.offsets[c + n] - base);
    if (entries > 0) {
        std::int64_t cell[entries_per_thread];
        gather_cells(cell, a, work, base, entries);
        multiply(products, a, work, base, entries, cell);
    }
    const int own = static_cast<int>(threadIdx.x);
    const bool longer = own < n && a.map.offsets[c + own + 1] - a.map.offsets[c + own] > by_warp;
    const bool some_longer = __syncthreads_count(longer) > 0;
    T* to = a.to + c * a.components + work.k;
    for (int task = own; task < n * work.width; task += threads) {
        const int s = work.over_width(task);
        const int k = task - s * work.width;
        if (starts[s + 1] - starts[s] <= by_warp) {
            const double factor = scale_of(a, c + s);
            const Total total = sum_segment(products, work.width, starts[s], starts[s + 1], k);
            to[s * a.components + k] = static_cast<T>(factor * (total.high + total.low));
        }
    }
    for (int s = some_longer ? own / 32 : n; s < n; s += threads / 32) {
        if (starts[s + 1] - starts[s] <= by_warp) {
            continue;
        }
        sum_chunks(products, work, starts[s], starts[s + 1], 0, groups_per_warp);
        __syncwarp(whole_warp);
        if (const int k = own % 32; k < work.width) {
            Total total;
            add_chunks(products, work.width, starts[s], starts[s + 1], k, total);
            to[s * a.components + k] = static_cast<T>(scale_of(a, c + s) * (total.high + total.low));
        }
    }
}

// A segment that no tile holds: by all threads, a tile of whole blocks of 64 entries at a time.
template <typename T>
__device__ __forceinline__ void coarsen_long(const Cells<T>& a, const Work& work, std::int64_t c, double* products) {
    const int most = work.tile() / chunk * chunk;
    const std::int64_t end = a.map.offsets[c + 1];
    const auto entries_at = [&](std::int64_t j) { return end - j < most ? static_cast<int>(end - j) : most; };
    const int own = static_cast<int>(threadIdx.x);
    Total total;
    std::int64_t cell[entries_per_thread];
    gather_cells(cell, a, work, a.map.offsets[c], entries_at(a.map.offsets[c]));
    for (std::int64_t j = a.map.offsets[c]; j < end; j += most) {
        const int entries = entries_at(j);
        __syncthreads(); // the sums of the tile before have been added
        multiply(products, a, work, j, entries, cell);
        if (j + most < end) {
            gather_cells(cell, a, work, j + most, entries_at(j + most));
        }
        __syncthreads();
        sum_chunks(products, work, 0, entries, own / 32 * groups_per_warp, threads / lanes);
        __syncthreads();
        if (own < work.width) {
            add_chunks(products, work.width, 0, entries, own, total);
        }
    }
    if (own < work.width) {
        a.to[c * a.components + work.k + own] = static_cast<T>(scale_of(a, c) * (total.high + total.low));
    }
}

template <typename T>
__global__ void __launch_bounds__(threads, sizeof(T) == 8 ? 3 : 4) coarsen(Cells<T> a) {
    NEUROSCALE_SHARED(memory);
    double* products = reinterpret_cast<double*>(memory);
    int* starts = reinterpret_cast<int*>(memory + slots * sizeof(double));
    for (std::int64_t block = blockIdx.x; block < a.blocks; block += gridDim.x) {
        const Work work(a, block);
        for (std::int64_t c = work.first; c < work.last;) {
            const int n = whole_segments(a.map, c, work, starts);
            if (n == 0) {
                coarsen_long(a, work, c, products);
            } else {
                coarsen_tile(a, work, c, n, products, starts);
            }
            c += n == 0 ? 1 : n;
        }
    }
}

// Which of the n segments of a tile an entry belongs to: at least eight threads write it for each segment.
__device__ __forceinline__ void write_owners(const int* starts, int n, std::uint8_t* owners) {
    int shares = threads;
    while (shares > lanes && shares * n > threads) {
        shares /= 2;
    }
    const int own = static_cast<int>(threadIdx.x);
    for (int s = own / shares; s < n; s += threads / shares) {
        for (int e = starts[s] + own % shares; e < starts[s + 1]; e += shares) {
            owners[e] = static_cast<std::uint8_t>(s);
        }
    }
}

// The pairs of a tile that starts in segment c, all of it in that segment where `owners` is nullptr.
template <typename T>
__device__ __forceinline__ void spread(const Cells<T>& a, const Work& work, std::int64_t c, std::int64_t base,
                                       int entries, const std::int64_t (&cell)[entries_per_thread],
                                       const std::uint8_t* owners) {
    if (work.idle()) {
        return;
    }
    const T* from = a.from + c * a.components + work.k + work.column;
    T value[entries_per_thread];
    gather(value, work, entries, [&](int, unsigned e) {
        const int s = owners == nullptr ? 0 : owners[e];
        const double weight = a.weights == nullptr ? 1.0 : static_cast<double>(a.weights[base + e]);
        return static_cast<T>(weight * scale_of(a, c + s) * static_cast<double>(in_row(from, s, a.stride)));
    });
    T* to = a.to + work.k + work.column;
    work.for_entries([&](int u, int e) {
        if (e < entries) {
            in_row(to, cell[u], a.stride) = value[u];
        }
    });
}

template <typename T>
__global__ void __launch_bounds__(threads, 4) refine(Cells<T> a) {
    NEUROSCALE_SHARED(memory);
    int* starts = reinterpret_cast<int*>(memory);
    std::uint8_t* owners = memory + starts_bytes;
    for (std::int64_t block = blockIdx.x; block < a.blocks; block += gridDim.x) {
        const Work work(a, block);
        const int most = work.tile();
        for (std::int64_t c = work.first; c < work.last;) {
            const int n = whole_segments(a.map, c, work, starts);
            const std::int64_t end = a.map.offsets[c + (n == 0 ? 1 : n)];
            for (std::int64_t j = a.map.offsets[c]; j < end; j += most) {
                const int entries = end - j < most ? static_cast<int>(end - j) : most;
                std::int64_t cell[entries_per_thread];
                gather_cells(cell, a, work, j, entries);
                if (n > 1) {
                    __syncthreads();
                    write_owners(starts, n, owners);
                    __syncthreads();
                }
                spread(a, work, c, j, entries, cell, n > 1 ? owners : nullptr);
            }
            c += n == 0 ? 1 : n;
        }
    }
}

template <typename T>
int coarsen_cells(const CellMap& map, const T* weights, const T* scale, const T* fine, std::int64_t components,
                  T* coarse, void* stream) noexcept {
    const Cells<T> a = cells_of(map, weights, scale, fine, components, coarse);
    return launch_blocks(a.blocks, slots * sizeof(double) + starts_bytes, stream, coarsen<T>, a);
}

template <typename T>
int refine_cells(const CellMap& map, const T* weights, const T* scale, const T* coarse, std::int64_t components,
                 T* fine, void* stream) noexcept {
    const Cells<T> a = cells_of(map, weights, scale, coarse, components, fine);
    return launch_blocks(a.blocks, starts_bytes + most_pairs, stream, refine<T>, a);
}

template int coarsen_cells<float>(const CellMap&, const float*, const float*, const float*, std::int64_t, float*,
                                  void*) noexcept;
template int coarsen_cells<double>(const CellMap&, const double*, const double*, const double*, std::int64_t, double*,
                                   void*) noexcept;
template int refine_cells<float>(const CellMap&, const float*, const float*, const float*, std::int64_t, float*,
                                 void*) noexcept;
template int refine_cells<double>(const CellMap&, const double*, const double*, const double*, std::int64_t, double*,
                                  void*) noexcept;

} // namespace neuroscale::kernels::cuda
