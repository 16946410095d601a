// What coarsening and refining share: how segments of entries are dealt to blocks and threads as tiles of 2048 pairs
// (entry, component).
#pragma once

#include "neuroscale/kernels/coarsen_cells.h"

#include "launch.h"

#include <type_traits>

namespace neuroscale::kernels::cuda {

constexpr int threads = threads_per_block;
constexpr int entries_per_thread = 8;
constexpr int most_pairs = threads * entries_per_thread;
constexpr int most_width = 32; // a tile has room for a block of 64 entries

template <typename T>
struct Cells {
    CellMap map;
    const T* weights;
    const T* scale;
    const T* from;
    T* to;
    std::int64_t components;
    std::int64_t stride; // bytes of a row
    std::int64_t slabs;
    int width;
    std::int64_t segments; // per block
    std::int64_t blocks;
};

constexpr std::int64_t starts_bytes = (threads + 1) * sizeof(int);

// What one block works on: segments first ... last - 1, components k ... k + width - 1. A thread has the same component
// of entries row, row + rows, ... of every tile; some threads have none.
struct Work {
    std::int64_t first;
    std::int64_t last;
    std::int64_t k;
    int width;
    int rows;
    int row;
    int column;
    unsigned inverse;

    template <typename T>
    __device__ __forceinline__ Work(const Cells<T>& a, std::int64_t block) {
        const std::int64_t range = a.slabs == 1 ? block : block / a.slabs;
        first = range * a.segments;
        last = first + a.segments < a.map.coarse ? first + a.segments : a.map.coarse;
        k = (block - range * a.slabs) * a.width;
        width = a.components - k < a.width ? static_cast<int>(a.components - k) : a.width;
        inverse = (1U << 31) / static_cast<unsigned>(width) + 1;
        rows = static_cast<int>(threads / static_cast<unsigned>(width));
        row = over_width(static_cast<int>(threadIdx.x));
        column = static_cast<int>(threadIdx.x) - row * width;
    }

    __device__ __forceinline__ bool idle() const { return row == rows; }

    __device__ __forceinline__ int tile() const { return rows * entries_per_thread; }

    // each(u, entry of the tile).
    template <typename Each>
    __device__ __forceinline__ void for_entries(Each each) const {
        int own = row;
        asm volatile("" : "+r"(own)); // or registers keep all that follows from it, cheap as it is, for the next tile
#pragma unroll
        for (int u = 0; u < entries_per_thread; ++u) {
            each(u, own + u * rows);
        }
    }

    // i / width, exact where i * width < 2^31.
    __device__ __forceinline__ int over_width(int i) const {
        return static_cast<int>(static_cast<std::uint64_t>(static_cast<unsigned>(i)) * inverse >> 31);
    }
};

// How many of the segments c ... last - 1 fit into a tile together, at most one per thread. Their starts, counted from
// the first, are in `starts` after the next barrier.
__device__ __forceinline__ int whole_segments(const CellMap& map, std::int64_t c, const Work& work, int* starts) {
    const std::int64_t own = c + threadIdx.x;
    const std::int64_t end = own < work.last ? map.offsets[own + 1] - map.offsets[c] : most_pairs + 1;
    const bool fits = end <= work.tile();
    const int count = __syncthreads_count(fits);
    if (fits) {
        starts[threadIdx.x + 1] = static_cast<int>(end);
    }
    if (threadIdx.x == 0) {
        starts[0] = 0;
    }
    return count;
}

// Of the `entries` of a tile those of this thread; beyond the end the last stands in, so that no load is conditional.
template <typename T, typename At>
__device__ __forceinline__ void gather(T (&into)[entries_per_thread], const Work& work, int entries, At at) {
    work.for_entries([&](int u, int e) { into[u] = at(u, static_cast<unsigned>(e < entries ? e : entries - 1)); });
}

// Element row * stride / sizeof(T) of an array: a multiplication and an addition in one instruction.
template <typename T>
__device__ __forceinline__ T& in_row(T* array, std::int64_t row, std::int64_t stride) {
    using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
    return *reinterpret_cast<T*>(reinterpret_cast<Byte*>(array) + row * stride);
}

template <typename T>
__device__ __forceinline__ void gather_cells(std::int64_t (&cell)[entries_per_thread], const Cells<T>& a,
                                             const Work& work, std::int64_t base, int entries) {
    const std::int64_t* cells = a.map.cells + base;
    gather(cell, work, entries, [&](int, unsigned e) { return cells[e]; });
}

template <typename T>
__device__ __forceinline__ double scale_of(const Cells<T>& a, std::int64_t c) {
    return a.scale == nullptr ? 1.0 : static_cast<double>(a.scale[c]);
}

// As many segments per block as fill a tile if all are as long as the mean, less 1/8 where there are many: one that
// does not fit costs a second tile.
template <typename T>
Cells<T> cells_of(const CellMap& map, const T* weights, const T* scale, const T* from, std::int64_t components, T* to) {
    const std::int64_t slabs = (components + most_width - 1) / most_width;
    if (map.coarse == 0 || components == 0) {
        return {};
    }
    const int width = static_cast<int>((components + slabs - 1) / slabs);
    const std::int64_t length = map.entries / map.coarse;
    std::int64_t segments = length == 0 ? threads : threads / width * entries_per_thread * map.coarse / map.entries;
    segments -= segments / 8;
    segments = segments < 1 ? 1 : segments > threads ? threads : segments;
    const std::int64_t blocks = (map.coarse + segments - 1) / segments * slabs;
    return {map,   weights, scale,    from,  to, components, components * std::int64_t(sizeof(T)),
            slabs, width,   segments, blocks};
}

} // namespace neuroscale::kernels::cuda
