// One pass, depth first: as soon as k slices (rows of a plane field, planes of a volume) of a level are there, their
// coarse slice is made, while they are still in cache. The batch is cut into blocks of slices; a block is one thread's,
// and every cell is computed alone, so the result does not depend on the number of threads.
#include "neuroscale/kernels/coarsen_pyramid.h"

#include "parallel.h"

namespace neuroscale::kernels::cpu {

// The k (or k * k in a volume) rows that become one coarse row.
struct Rows {
    std::int64_t planes;
    std::int64_t k;
    std::int64_t to_plane;
    std::int64_t to_row;
};

constexpr std::int64_t tile = 512;  // columns that are summed at a time
constexpr std::int64_t narrow = 64; // coarse cells of a row that is not worth a tile

// Sum over rows[...][x + i] of value(row, i), i < n: n column sums. One row after the other: two at once are slower,
// because the hardware then fetches ahead less well.
template <typename T, typename Value>
NEUROSCALE_INLINE void add_rows(const Rows& rows, std::int64_t n, T* __restrict columns, Value value) {
    for (std::int64_t i = 0; i < n; ++i) {
        columns[i] = value(std::int64_t{0}, i);
    }
    for (std::int64_t z = 0; z < rows.planes; ++z) {
        for (std::int64_t y = z == 0 ? 1 : 0; y < rows.k; ++y) {
            const std::int64_t row = z * rows.to_plane + y * rows.to_row;
            for (std::int64_t i = 0; i < n; ++i) {
                columns[i] += value(row, i);
            }
        }
    }
}

// Every k columns to one value, divided by `cells`; for powers of two a product is exact, and faster.
template <int K, typename T>
NEUROSCALE_INLINE void add_columns(const T* __restrict columns, std::int64_t k_any, std::int64_t n, T cells,
                                   T* __restrict out) {
    const std::int64_t k = K > 0 ? K : k_any;
    const T share = T(1) / cells;
    for (std::int64_t i = 0; i < n; ++i) {
        T total = columns[k * i];
        for (std::int64_t x = 1; x < k; ++x) {
            total += columns[k * i + x];
        }
        out[i] = K == 2 || K == 4 ? total * share : total / cells;
    }
}

// Halves a narrow row without the way through `columns`.
template <typename T>
NEUROSCALE_INLINE void halve_row(const T* __restrict a, const Rows& rows, std::int64_t n, T share, T* __restrict out) {
    const T* __restrict b = a + rows.to_row;
    if (rows.planes == 1) {
        for (std::int64_t i = 0; i < n; ++i) {
            out[i] = ((a[2 * i] + b[2 * i]) + (a[2 * i + 1] + b[2 * i + 1])) * share;
        }
        return;
    }
    const T* __restrict c = a + rows.to_plane;
    const T* __restrict d = c + rows.to_row;
    for (std::int64_t i = 0; i < n; ++i) {
        const T even = ((a[2 * i] + b[2 * i]) + c[2 * i]) + d[2 * i];
        const T odd = ((a[2 * i + 1] + b[2 * i + 1]) + c[2 * i + 1]) + d[2 * i + 1];
        out[i] = (even + odd) * share;
    }
}

// One coarse row of n sums divided by `cells` (1 for plain sums).
template <int K, typename T>
NEUROSCALE_INLINE void reduce_row(const T* __restrict first, const Rows& rows, std::int64_t n, T cells,
                                  T* __restrict out) {
    if (K == 2 && n <= narrow) {
        halve_row(first, rows, n, T(1) / cells, out);
        return;
    }
    T columns[tile];
    const std::int64_t step = tile / rows.k;
    for (std::int64_t start = 0; start < n; start += step) {
        const std::int64_t count = n - start < step ? n - start : step;
        const T* source = first + start * rows.k;
        add_rows(rows, count * rows.k, columns, [=](std::int64_t row, std::int64_t i) { return source[row + i]; });
        add_columns<K>(columns, rows.k, count, cells, out + start);
    }
}

// One coarse row of n variances about the means of that row.
template <int K, typename T>
NEUROSCALE_INLINE void variance_row(const T* __restrict first, const T* __restrict variance, const T* __restrict mean,
                                    const Rows& rows, std::int64_t n, T cells, T* __restrict out) {
    T columns[tile];
    T about[tile];
    const std::int64_t step = tile / rows.k;
    for (std::int64_t start = 0; start < n; start += step) {
        const std::int64_t count = n - start < step ? n - start : step;
        for (std::int64_t i = 0; i < count; ++i) {
            for (std::int64_t x = 0; x < rows.k; ++x) {
                about[i * rows.k + x] = mean[start + i];
            }
        }
        const T* source = first + start * rows.k;
        const T* __restrict m = about;
        if (variance == nullptr) {
            add_rows(rows, count * rows.k, columns, [=](std::int64_t row, std::int64_t i) {
                const T d = source[row + i] - m[i];
                return d * d;
            });
        } else {
            const T* finer = variance + start * rows.k;
            add_rows(rows, count * rows.k, columns, [=](std::int64_t row, std::int64_t i) {
                const T d = source[row + i] - m[i];
                return finer[row + i] + d * d;
            });
        }
        add_columns<K>(columns, rows.k, count, cells, out + start);
    }
}

// A level's sides, and where slice `i` of the next level starts in it.
struct Level {
    std::int64_t height;
    std::int64_t width;
    std::int64_t k;
    bool volume;

    NEUROSCALE_INLINE std::int64_t slice() const { return volume ? height * width : width; }
    NEUROSCALE_INLINE std::int64_t coarse_slice() const { return volume ? slice() / (k * k) : width / k; }
    NEUROSCALE_INLINE std::int64_t rows() const { return volume ? height / k : 1; }
};

// Coarse slice number `i` of level s + 1 from level s.
template <int K, typename T>
NEUROSCALE_INLINE void reduce_slice(const T* fine, const PyramidOutputs<T>& outputs, std::int64_t s, const Level& level,
                                    std::int64_t i) {
    const Rows rows{level.volume ? level.k : 1, level.k, level.height * level.width, level.width};
    const T cells = static_cast<T>(rows.planes * level.k * level.k);
    const std::int64_t n = level.width / level.k;
    for (std::int64_t y = 0; y < level.rows(); ++y) {
        const std::int64_t at = i * level.k * level.slice() + y * level.k * level.width;
        const std::int64_t out = i * level.coarse_slice() + y * n;
        const T* mean = s == 0 ? fine : outputs.mean[s - 1];
        reduce_row<K>(mean + at, rows, n, cells, outputs.mean[s] + out);
        if (outputs.total != nullptr) {
            const T* total = s == 0 ? fine : outputs.total[s - 1];
            reduce_row<K>(total + at, rows, n, T(1), outputs.total[s] + out);
        }
        if (outputs.variance != nullptr) {
            const T* variance = s == 0 ? nullptr : outputs.variance[s - 1] + at;
            variance_row<K>(mean + at, variance, outputs.mean[s] + out, rows, n, cells, outputs.variance[s] + out);
        }
    }
}

template <typename T>
NEUROSCALE_INLINE void reduce(const T* fine, const PyramidOutputs<T>& outputs, std::int64_t s, const Level& level,
                              std::int64_t i) {
    switch (level.k) {
    case 2:
        return reduce_slice<2>(fine, outputs, s, level, i);
    case 3:
        return reduce_slice<3>(fine, outputs, s, level, i);
    case 4:
        return reduce_slice<4>(fine, outputs, s, level, i);
    default:
        return reduce_slice<0>(fine, outputs, s, level, i);
    }
}

// Slices first ... last - 1 of level `from + 1` and all that they complete, up to level `to`.
template <typename T>
NEUROSCALE_INLINE void cascade(const T* fine, const PyramidOutputs<T>& outputs, const Level* levels, std::int64_t from,
                               std::int64_t to, std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) {
        reduce(fine, outputs, from, levels[from], i);
        std::int64_t done = i + 1;
        for (std::int64_t s = from + 1; s < to && done % levels[s].k == 0; ++s) {
            done /= levels[s].k;
            reduce(fine, outputs, s, levels[s], done - 1);
        }
    }
}

NEUROSCALE_CLONES static void run(const float* fine, const PyramidOutputs<float>& outputs, const Level* levels,
                                  std::int64_t from, std::int64_t to, std::int64_t first, std::int64_t last) {
    cascade(fine, outputs, levels, from, to, first, last);
}

NEUROSCALE_CLONES static void run(const double* fine, const PyramidOutputs<double>& outputs, const Level* levels,
                                  std::int64_t from, std::int64_t to, std::int64_t first, std::int64_t last) {
    cascade(fine, outputs, levels, from, to, first, last);
}

template <typename T>
void coarsen_pyramid(const T* fine, const PyramidOutputs<T>& outputs, const PyramidShape& shape) noexcept {
    Level levels[max_pyramid_levels];
    std::int64_t height = shape.height;
    std::int64_t width = shape.width;
    for (std::int64_t s = 0; s < shape.levels; ++s) {
        levels[s] = Level{height, width, shape.factor[s], shape.volume};
        height /= shape.factor[s];
        width /= shape.factor[s];
    }
    const std::int64_t cells = shape.fields * shape.depth * shape.height * shape.width;
    const bool threads = cells * std::int64_t(sizeof(T)) >= worth_threads && max_threads() > 1;
    const std::int64_t wanted = threads ? 4 * max_threads() : 1;
    std::int64_t slices = shape.fields * (shape.volume ? shape.depth : shape.height);
    for (std::int64_t from = 0, to = 0; from < shape.levels && cells > 0; from = to) {
        // As many levels in one pass as leave enough blocks for all threads.
        slices /= levels[from].k;
        std::int64_t span = 1;
        for (to = from + 1; to < shape.levels && slices / (span * levels[to].k) >= wanted; ++to) {
            span *= levels[to].k;
        }
        const std::int64_t blocks = slices / span;
#pragma omp parallel for schedule(static) if (threads)
        for (std::int64_t part = 0; part < wanted; ++part) {
            run(fine, outputs, levels, from, to, blocks * part / wanted * span, blocks * (part + 1) / wanted * span);
        }
        slices /= span;
    }
}

template void coarsen_pyramid<float>(const float*, const PyramidOutputs<float>&, const PyramidShape&) noexcept;
template void coarsen_pyramid<double>(const double*, const PyramidOutputs<double>&, const PyramidShape&) noexcept;

} // namespace neuroscale::kernels::cpu
