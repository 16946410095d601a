// Means alone in one launch for as many levels as fit: a block makes all levels of its tile, the first from memory, the
// others from shared memory, so that every value of the field is read once and no level is read again. 32² with five
// levels, or 512² with six, is one launch.
#include "neuroscale/kernels/coarsen_pyramid.h"

#include "launch.h"
#include "pyramid_moments.h"

#include <algorithm>

namespace neuroscale::kernels::cuda {

constexpr std::int64_t tile_bytes = 1 << 15;         // of the field, for one block, where that is enough columns
constexpr std::int64_t most_shared_bytes = 48 << 10; // what a launch gets without asking the device for more
constexpr std::int64_t chunk_columns = 1024;         // whose sums are in shared memory at a time
constexpr std::int64_t widest_tile = 2048;
constexpr std::int64_t enough_units = 512; // for a device's multiprocessors, some times over
constexpr std::int64_t small_field =
    1 << 20;                    // bytes that any number of blocks reads sooner than one more launch begins
constexpr int most_levels = 11; // of widest_tile

// Sides in cells. Plane fields are one stack in y, volumes one in z: blocks of cells never cross fields.
struct Box {
    std::int64_t z;
    std::int64_t y;
    std::int64_t x;
};

// What one launch makes: `levels` levels from `source`.
template <typename T>
struct Group {
    const T* source;
    T* out[most_levels];
    int factor[most_levels];
    int levels;
    bool volume;
    bool pairs; // factor 2 comes first, and two neighbours can be loaded at once
    Box sides;  // of the source
    Box tile;
    Box tiles; // how many
};

// A tile at one level: where it begins in the batch, its sides, and those of the batch.
struct Place {
    std::int64_t z0;
    std::int64_t y0;
    std::int64_t x0;
    int depth;
    int height;
    int width;
    std::int64_t batch_height;
    std::int64_t batch_width;

    __device__ int cells() const { return depth * height * width; }
    __device__ std::int64_t at(int z, int y, int x) const {
        return ((z0 + z) * batch_height + y0 + y) * batch_width + x0 + x;
    }
    __device__ Place coarser(int k, int planes) const {
        return {z0 / planes, y0 / k, x0 / k, depth / planes, height / k, width / k, batch_height / k, batch_width / k};
    }
};

// Cell `i` of a place.
struct Cell {
    int z;
    int y;
    int x;

    __device__ Cell(int i, const Place& place)
        : z(i / place.width / place.height), y(i / place.width % place.height), x(i % place.width) {}
};

// A sum over `cells` cells to a mean; for powers of two the product is exact, and cheaper.
template <typename T>
struct Share {
    T cells;
    T product;

    __device__ explicit Share(int n)
        : cells(static_cast<T>(n)), product((n & (n - 1)) == 0 ? T(1) / static_cast<T>(n) : T(0)) {}
    __device__ T of(T sum) const { return product != T(0) ? sum * product : sum / cells; }
};

template <typename T>
struct PairOf;
template <>
struct PairOf<float> {
    using type = float2;
};
template <>
struct PairOf<double> {
    using type = double2;
};

template <typename T>
__device__ Place place_of(const Group<T>& g, std::int64_t tile) {
    const std::int64_t x0 = tile % g.tiles.x * g.tile.x;
    const std::int64_t y0 = tile / g.tiles.x % g.tiles.y * g.tile.y;
    const std::int64_t z0 = tile / g.tiles.x / g.tiles.y * g.tile.z;
    const auto side = [](std::int64_t left, std::int64_t most) { return static_cast<int>(left < most ? left : most); };
    return {z0,
            y0,
            x0,
            side(g.sides.z - z0, g.tile.z),
            side(g.sides.y - y0, g.tile.y),
            side(g.sides.x - x0, g.tile.x),
            g.sides.y,
            g.sides.x};
}

// One cell of the first level, factor 2, from pairs: rows of all planes down, then across.
template <int planes, typename T>
__device__ T sum_of_pairs(const T* from, const Place& fine) {
    using Pair = typename PairOf<T>::type;
    Pair sum{};
#pragma unroll
    for (int row = 0; row < 2 * planes; ++row) {
        const T* at = from + (row / 2 * fine.batch_height + row % 2) * fine.batch_width;
        const Pair next = __ldg(reinterpret_cast<const Pair*>(at));
        sum.x = row == 0 ? next.x : sum.x + next.x;
        sum.y = row == 0 ? next.y : sum.y + next.y;
    }
    return sum.x + sum.y;
}

// The first level, factor 2: a thread keeps to its column and makes some rows at a time, so that eight loads are on
// their way; beyond the last row it makes that one again, as a branch would make loads wait for each other.
template <int planes, typename T>
__device__ void first_of_pairs(const Group<T>& g, const Place& fine, const Place& coarse, T* made) {
    constexpr int batch = 4 / planes;
    constexpr T share = T(1) / (4 * planes);
    const int threads = static_cast<int>(blockDim.x);
    const int lanes = coarse.width < threads ? coarse.width : threads;
    const int together = threads / lanes; // rows
    const int rows = coarse.depth * coarse.height;
    const int mine = static_cast<int>(threadIdx.x) / lanes;
    for (int x = static_cast<int>(threadIdx.x) % lanes; x < coarse.width && mine < together; x += lanes) {
        const T* from = g.source + fine.at(0, 0, 2 * x);
        T* to = g.out[0] + coarse.at(0, 0, x);
        for (int first = mine; first < rows; first += batch * together) {
            T sum[batch];
            std::int64_t row[batch]; // in the batch of fields
#pragma unroll
            for (int b = 0; b < batch; ++b) {
                const int r = first + b * together < rows ? first + b * together : rows - 1;
                const int z = planes == 1 ? 0 : r / coarse.height;
                const int y = r - z * coarse.height;
                row[b] = z * coarse.batch_height + y;
                sum[b] = sum_of_pairs<planes>(from + (planes * z * fine.batch_height + 2 * y) * fine.batch_width, fine);
            }
#pragma unroll
            for (int b = 0; b < batch; ++b) {
                if (first + b * together < rows) {
                    made[(first + b * together) * coarse.width + x] = sum[b] * share;
                    to[row[b] * coarse.batch_width] = sum[b] * share;
                }
            }
        }
    }
}

// Sums down the columns of coarse rows first ... first + rows - 1 of a tile; neighbouring threads have neighbours.
template <typename T>
__device__ void sum_columns(const Group<T>& g, const Place& fine, int coarse_height, int first, int rows, T* columns) {
    const int k = g.factor[0];
    const int planes = g.volume ? k : 1;
    for (int i = static_cast<int>(threadIdx.x); i < rows * fine.width; i += static_cast<int>(blockDim.x)) {
        const int row = first + i / fine.width;
        const T* from = g.source + fine.at(row / coarse_height * planes, row % coarse_height * k, i % fine.width);
        T sum = __ldg(from);
        for (int z = 0; z < planes; ++z) {
            const T* plane = from + z * fine.batch_height * fine.batch_width;
#pragma unroll 8
            for (int y = z == 0 ? 1 : 0; y < k; ++y) {
                sum += __ldg(plane + y * fine.batch_width);
            }
        }
        columns[i] = sum;
    }
}

// The first level, any factor: sums down the columns go through shared memory, then across.
template <typename T>
__device__ void first_of_columns(const Group<T>& g, const Place& fine, const Place& coarse, T* columns, T* made) {
    const int k = g.factor[0];
    const Share<T> share(g.volume ? k * k * k : k * k);
    const int rows = coarse.depth * coarse.height;
    const int step = fine.width < chunk_columns ? static_cast<int>(chunk_columns) / fine.width : 1;
    for (int first = 0; first < rows; first += step) {
        const int count = rows - first < step ? rows - first : step;
        sum_columns(g, fine, coarse.height, first, count, columns);
        __syncthreads();
        for (int i = static_cast<int>(threadIdx.x); i < count * coarse.width; i += static_cast<int>(blockDim.x)) {
            const T* across = columns + i * k;
            T sum = across[0];
            for (int x = 1; x < k; ++x) {
                sum += across[x];
            }
            const Cell c(first * coarse.width + i, coarse);
            made[first * coarse.width + i] = share.of(sum);
            g.out[0][coarse.at(c.z, c.y, c.x)] = share.of(sum);
        }
        __syncthreads();
    }
}

// Level s + 1 of a tile from level s, which is in shared memory.
template <typename T>
__device__ void next_level(const Group<T>& g, int s, const T* finer, const Place& fine, const Place& coarse, T* made) {
    const int k = g.factor[s];
    const int planes = g.volume ? k : 1;
    const Share<T> share(planes * k * k);
    for (int i = static_cast<int>(threadIdx.x); i < coarse.cells(); i += static_cast<int>(blockDim.x)) {
        const Cell c(i, coarse);
        const T* from = finer + (c.z * planes * fine.height + c.y * k) * fine.width + c.x * k;
        T sum{};
        for (int x = 0; x < k; ++x) {
            T column{};
            for (int z = 0; z < planes; ++z) {
                for (int y = 0; y < k; ++y) {
                    const T term = from[(z * fine.height + y) * fine.width + x];
                    column = z + y == 0 ? term : column + term;
                }
            }
            sum = x == 0 ? column : sum + column;
        }
        const T mean = share.of(sum);
        made[i] = mean;
        g.out[s][coarse.at(c.z, c.y, c.x)] = mean;
    }
}

// pair_planes: how many planes of pairs make a cell of the first level, 0 where columns are summed instead.
template <int pair_planes, typename T>
__global__ void __launch_bounds__(threads_per_block) means(Group<T> g) {
    NEUROSCALE_SHARED(memory);
    for (std::int64_t tile = blockIdx.x; tile < g.tiles.z * g.tiles.y * g.tiles.x; tile += gridDim.x) {
        const Place finest = place_of(g, tile);
        Place fine = finest.coarser(g.factor[0], g.volume ? g.factor[0] : 1);
        T* made = reinterpret_cast<T*>(memory);
        if constexpr (pair_planes > 0) {
            first_of_pairs<pair_planes>(g, finest, fine, made);
        } else {
            first_of_columns(g, finest, fine, made + fine.cells(), made);
        }
        __syncthreads();
        for (int s = 1; s < g.levels; ++s) {
            const Place coarse = fine.coarser(g.factor[s], g.volume ? g.factor[s] : 1);
            next_level(g, s, made, fine, coarse, made + fine.cells());
            made += fine.cells();
            fine = coarse;
            __syncthreads();
        }
    }
}

// --- on the host: which levels one launch makes, and in what tiles ---

template <typename T>
std::int64_t cells_of(const Group<T>& g, std::int64_t side) {
    return g.volume ? side * side * side : side * side;
}

// Sets the tile: units of `unit` cells per side, along x first; smaller ones where the batch would not give enough.
template <typename T>
void set_tile(Group<T>& g, std::int64_t unit) {
    const std::int64_t k = g.factor[0];
    const std::int64_t columns = threads_per_block * k * (g.volume ? k : 1); // a column for every thread
    const std::int64_t share = g.sides.z * g.sides.y * g.sides.x / (2 * enough_units);
    const std::int64_t most = std::max<std::int64_t>(tile_bytes / std::int64_t(sizeof(T)), g.pairs ? 0 : columns);
    const std::int64_t wanted = std::clamp<std::int64_t>(share, cells_of(g, unit), std::max(most, cells_of(g, unit)));
    const std::int64_t unit_z = g.volume ? unit : 1;
    const auto along = [](std::int64_t side, std::int64_t piece, std::int64_t most) {
        return piece * std::max<std::int64_t>(1, std::min(side / piece, most));
    };
    std::int64_t left = wanted / cells_of(g, unit);
    g.tile.x = along(g.sides.x, unit, std::min(left, widest_tile / unit));
    left /= g.tile.x / unit;
    g.tile.y = along(g.sides.y, unit, left);
    left /= g.tile.y / unit;
    g.tile.z = along(g.sides.z, unit_z, left);
    const auto pieces = [](std::int64_t side, std::int64_t piece) { return (side + piece - 1) / piece; };
    g.tiles = {pieces(g.sides.z, g.tile.z), pieces(g.sides.y, g.tile.y), pieces(g.sides.x, g.tile.x)};
}

template <typename T>
std::int64_t shared_bytes(const Group<T>& g) {
    std::int64_t values = g.pairs ? 0 : std::max(g.tile.x, chunk_columns);
    std::int64_t cells = g.tile.z * g.tile.y * g.tile.x;
    for (int s = 0; s < g.levels; ++s) {
        cells /= cells_of(g, g.factor[s]);
        values += cells;
    }
    return values * std::int64_t(sizeof(T));
}

// As many of the levels from `from` on as one launch can make and leave enough to do for all multiprocessors.
template <typename T>
Group<T> group_from(const T* source, const Box& sides, const PyramidOutputs<T>& outputs, const PyramidShape& shape,
                    std::int64_t from) {
    Group<T> g{};
    g.source = source;
    g.sides = sides;
    g.volume = shape.volume;
    g.pairs = shape.factor[from] == 2 && reinterpret_cast<std::uintptr_t>(source) % (2 * sizeof(T)) == 0;
    const bool small = sides.z * sides.y * sides.x * std::int64_t(sizeof(T)) <= small_field;
    std::int64_t unit = 1;
    for (std::int64_t s = from; s < shape.levels && g.levels < most_levels; ++s) {
        Group<T> more = g;
        more.factor[more.levels] = static_cast<int>(shape.factor[s]);
        more.out[more.levels++] = outputs.mean[s];
        unit *= shape.factor[s];
        const std::int64_t units = sides.z * sides.y * sides.x / cells_of(g, unit);
        if (s > from && (unit > widest_tile || (units < enough_units && !small))) {
            break;
        }
        set_tile(more, unit);
        if (s > from && shared_bytes(more) > most_shared_bytes) {
            break;
        }
        g = more;
    }
    return g;
}

template <typename T>
int coarsen_pyramid(const T* fine, const T* const* volumes, const PyramidOutputs<T>& outputs, const PyramidShape& shape,
                    void* stream) noexcept {
    if (outputs.variance != nullptr || outputs.total != nullptr || volumes != nullptr) {
        return coarsen_moments(fine, volumes, outputs, shape, stream);
    }
    Box sides = shape.volume ? Box{shape.fields * shape.depth, shape.height, shape.width}
                             : Box{1, shape.fields * shape.height, shape.width};
    const T* source = fine;
    for (std::int64_t s = 0; s < shape.levels && sides.z * sides.y > 0;) {
        const Group<T> g = group_from(source, sides, outputs, shape, s);
        const std::int64_t tiles = g.tiles.z * g.tiles.y * g.tiles.x;
        const auto kernel = !g.pairs ? means<0, T> : g.volume ? means<2, T> : means<1, T>;
        const int error = launch_blocks(tiles, shared_bytes(g), stream, kernel, g);
        if (error != 0) {
            return error;
        }
        for (int level = 0; level < g.levels; ++level, ++s) {
            sides.z /= shape.volume ? g.factor[level] : 1;
            sides.y /= g.factor[level];
            sides.x /= g.factor[level];
        }
        source = outputs.mean[s - 1];
    }
    return 0;
}

template int coarsen_pyramid<float>(const float*, const float* const*, const PyramidOutputs<float>&,
                                    const PyramidShape&, void*) noexcept;
template int coarsen_pyramid<double>(const double*, const double* const*, const PyramidOutputs<double>&,
                                     const PyramidShape&, void*) noexcept;

int device_count() noexcept {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

const char* error_text(int error) noexcept {
    return cudaGetErrorString(static_cast<cudaError_t>(error));
}

} // namespace neuroscale::kernels::cuda
