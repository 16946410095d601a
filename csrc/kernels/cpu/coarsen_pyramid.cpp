// One pass, depth first: as soon as k slices (rows of a plane field, planes of a volume) of a level are there, their
// coarse slice is made, while they are still in cache. The batch is cut into blocks of slices; a block is one thread's,
// and every cell is computed alone, so the result does not depend on the number of threads.
#include "neuroscale/kernels/coarsen_pyramid.h"

#include "columns.h"
#include "halve.h"
#include "level.h"
#include "parallel.h"

#include <initializer_list>

namespace neuroscale::kernels::cpu {

constexpr std::int64_t tile = 2048;                // columns that are summed at a time
constexpr std::int64_t group_bytes = 1 << 16;      // of a level that are reduced before the next level goes on
constexpr std::int64_t near_group_bytes = 1 << 18; // the same where the field is near: a group costs time as well
constexpr std::int64_t near_bytes = 8 << 20; // of a field that may lie in the caches, where asking ahead costs time
constexpr std::int64_t wide = 256;           // a row wider than this goes through the tile alone
constexpr std::int64_t block_bytes = 4096;   // of each plane that are asked for at a time (volumes: twice that)
constexpr std::int64_t ahead = 2048;         // and how far ahead, both found by trial

// Sum over rows[...][x + i] of value(row, i), i < n: n column sums.
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

// What a call reads and writes, see the header.
template <typename T>
struct Work {
    const T* fine;
    const T* const* volumes;
    PyramidOutputs<T> outputs;
    bool near; // the field may lie in the caches
};

// Coarse rows first ... last - 1 of sums divided by `cells`: many narrow rows at a time, so that the sums across the
// columns are one long loop.
template <int K, typename T>
NEUROSCALE_INLINE void reduce_narrow(const T* __restrict source, const Level& level, std::int64_t first,
                                     std::int64_t last, T cells, T* __restrict out) {
    T columns[tile];
    const Rows rows = level.rows();
    const std::int64_t width = level.width;
    const std::int64_t n = level.coarse_width();
    const std::int64_t step = tile / width;
    const T* __restrict from = source + level.source(first);
    for (std::int64_t row = first; row < last; row += step) {
        const std::int64_t count = last - row < step ? last - row : step;
        for (std::int64_t r = 0; r < count; ++r, from += level.k * width) {
            add_rows(rows, width, columns + r * width, [=](std::int64_t at, std::int64_t i) { return from[at + i]; });
        }
        add_columns<K>(columns, level.k, count * n, cells, out + row * n);
    }
}

// Asks for what comes `ahead` bytes after each plane's rows at `from`. Adding up k rows at once alone makes k streams,
// which the hardware fetches at half the speed of one.
template <typename T>
NEUROSCALE_INLINE void fetch_ahead(const T* from, std::int64_t planes, std::int64_t to_plane, std::int64_t bytes) {
    for (std::int64_t z = 0; z < planes; ++z) {
        fetch(from + z * to_plane, ahead, bytes);
    }
}

// Coarse rows first ... last - 1, wider than a tile, piece by piece.
template <int K, typename T>
NEUROSCALE_INLINE void reduce_wide(const T* __restrict source, const Level& level, std::int64_t first,
                                   std::int64_t last, T cells, T* __restrict out, bool far) {
    T columns[tile];
    const Rows rows = level.rows();
    const std::int64_t n = level.coarse_width();
    const std::int64_t step = tile / level.k;
    for (std::int64_t row = first; row < last; ++row) {
        for (std::int64_t start = 0; start < n; start += step) {
            const std::int64_t count = n - start < step ? n - start : step;
            const T* from = source + level.source(row) + start * level.k;
            for (std::int64_t y = 0; y < level.k && far; ++y) {
                fetch_ahead(from + y * level.width, rows.planes, rows.to_plane,
                            count * level.k * std::int64_t(sizeof(T)));
            }
            T* to = out + row * n + start;
            if constexpr (K == 2) {
                level.volume ? halve_row<true>(from, level.width, rows.to_plane, count, T(1) / cells, to)
                             : halve_row<false>(from, level.width, rows.to_plane, count, T(1) / cells, to);
            } else if constexpr (K == 3 || K == 4) {
                level.volume ? block_row<K, true>(from, level.width, rows.to_plane, count, cells, to)
                             : block_row<K, false>(from, level.width, rows.to_plane, count, cells, to);
            } else {
                add_rows(rows, count * level.k, columns, [=](std::int64_t at, std::int64_t i) { return from[at + i]; });
                add_columns<K>(columns, level.k, count, cells, to);
            }
        }
    }
}

// Coarse rows first ... last - 1 of sums divided by `cells`. far: the source may have to come from memory.
template <int K, typename T>
NEUROSCALE_INLINE void reduce_rows(const T* source, const Level& level, std::int64_t first, std::int64_t last, T cells,
                                   T* out, bool far) {
    constexpr std::int64_t size = sizeof(T);
    const Rows rows = level.rows();
    const std::int64_t bytes = level.k * level.width * size; // of a coarse row in each plane
    const std::int64_t block = level.volume ? 2 * block_bytes : block_bytes;
    const bool blocks = bytes * rows.planes <= 4 * block_bytes;
    const std::int64_t step = !far ? last - first : bytes < block ? block / bytes : 1;
    for (std::int64_t row = first, end = first; row < last; row = end) {
        end = last - row < step ? last : row + step;
        if (level.volume) { // no further than the slice goes
            const std::int64_t slice_end = (row / level.coarse_rows() + 1) * level.coarse_rows();
            end = end < slice_end ? end : slice_end;
        }
        // A slice of small planes is one block: the next is asked for in the order of the memory, between the
        // additions.
        const bool fetches = K == 2 || K == 3; // more rows at once are fetched well enough without being asked for
        const bool between = K == 2 && far && level.volume && rows.to_plane * size <= block && level.width * size >= 64;
        const std::int64_t distance = between ? rows.to_plane + ahead / size : 0;
        if (far && blocks && !between && fetches) {
            fetch_ahead(source + level.source(row), rows.planes, rows.to_plane, (end - row) * bytes);
        }
        std::int64_t left = row;
        if constexpr (K == 2) {
            if (blocks) {
                left = level.volume ? halve<true>(source, level, row, end, T(1) / cells, out, distance)
                                    : halve<false>(source, level, row, end, T(1) / cells, out, distance);
            }
        } else if constexpr (K > 0) {
            if (blocks) {
                left = level.volume ? block_rows<K, true>(source, level, row, end, cells, out)
                                    : block_rows<K, false>(source, level, row, end, cells, out);
            }
        }
        if (level.width > wide) {
            reduce_wide<K>(source, level, left, end, cells, out, far && !blocks && fetches);
        } else {
            reduce_narrow<K>(source, level, left, end, cells, out);
        }
    }
}

// One coarse row with unequal volumes: sum, mean and, where it is wanted, variance.
template <typename T>
NEUROSCALE_INLINE void weighted_row(const Work<T>& work, std::int64_t s, const Level& level, std::int64_t row) {
    T columns[tile];
    const PyramidOutputs<T>& to = work.outputs;
    const Rows rows = level.rows();
    const std::int64_t n = level.coarse_width();
    const std::int64_t local = row % level.field_rows();
    for (std::int64_t start = 0; start < n; start += tile / level.k) {
        const std::int64_t count = n - start < tile / level.k ? n - start : tile / level.k;
        const std::int64_t at = level.source(row) + start * level.k;
        const T* volume = work.volumes[s] + level.source(local) + start * level.k;
        const T* size = work.volumes[s + 1] + local * n + start;
        const T* finer = (s == 0 ? work.fine : to.total[s - 1]) + at;
        const T* mean = (s == 0 ? work.fine : to.mean[s - 1]) + at;
        const T* variance = s == 0 || to.variance == nullptr ? nullptr : to.variance[s - 1] + at;
        T* total = to.total[s] + row * n + start;
        T* coarse = to.mean[s] + row * n + start;
        add_rows(rows, count * level.k, columns,
                 [=](std::int64_t y, std::int64_t i) { return s == 0 ? volume[y + i] * finer[y + i] : finer[y + i]; });
        add_columns<0>(columns, level.k, count, T(1), total);
        for (std::int64_t i = 0; i < count; ++i) {
            coarse[i] = total[i] / size[i];
        }
        if (to.variance == nullptr) {
            continue;
        }
        add_rows(rows, count * level.k, columns, [=](std::int64_t y, std::int64_t i) {
            const T d = mean[y + i] - coarse[i / level.k];
            return volume[y + i] * (variance == nullptr ? d * d : variance[y + i] + d * d);
        });
        T* spread = to.variance[s] + row * n + start;
        add_columns<0>(columns, level.k, count, T(1), spread);
        for (std::int64_t i = 0; i < count; ++i) {
            spread[i] /= size[i];
        }
    }
}

// Coarse slices first ... last - 1 of level s + 1 from level s, all volumes equal.
template <int K, typename T>
NEUROSCALE_INLINE void reduce_slices(const Work<T>& work, std::int64_t s, const Level& level, std::int64_t first,
                                     std::int64_t last) {
    const PyramidOutputs<T>& outputs = work.outputs;
    const std::int64_t from = first * level.coarse_rows();
    const std::int64_t to = last * level.coarse_rows();
    const T cells = static_cast<T>(level.cells());
    for (T* const* plain : {outputs.mean, outputs.total}) {
        if (plain != nullptr) {
            const T count = plain == outputs.mean ? cells : T(1);
            reduce_rows<K>(s == 0 ? work.fine : plain[s - 1], level, from, to, count, plain[s], s == 0 && !work.near);
        }
    }
    if (outputs.variance != nullptr) {
        const T* mean = s == 0 ? work.fine : outputs.mean[s - 1];
        const std::int64_t n = level.coarse_width();
        for (std::int64_t row = from; row < to; ++row) {
            const std::int64_t at = level.source(row);
            const T* variance = s == 0 ? nullptr : outputs.variance[s - 1] + at;
            variance_row<K>(mean + at, variance, outputs.mean[s] + row * n, level.rows(), n, cells,
                            outputs.variance[s] + row * n);
        }
    }
}

template <typename T>
NEUROSCALE_INLINE void reduce(const Work<T>& work, std::int64_t s, const Level& level, std::int64_t first,
                              std::int64_t last) {
    if (work.volumes != nullptr) {
        for (std::int64_t row = first * level.coarse_rows(); row < last * level.coarse_rows(); ++row) {
            weighted_row(work, s, level, row);
        }
        return;
    }
    switch (level.k) {
    case 2:
        return reduce_slices<2>(work, s, level, first, last);
    case 3:
        return reduce_slices<3>(work, s, level, first, last);
    case 4:
        return reduce_slices<4>(work, s, level, first, last);
    default:
        return reduce_slices<0>(work, s, level, first, last);
    }
}

// Slices first ... last - 1 of level `from + 1` and all that they complete, up to level `to`; as many at a time as keep
// their level in cache until the next has been made from it.
template <typename T>
NEUROSCALE_INLINE void cascade(const Work<T>& work, const Level* levels, std::int64_t from, std::int64_t to,
                               std::int64_t first, std::int64_t last) {
    const std::int64_t bytes = levels[from].k * levels[from].slice() * std::int64_t(sizeof(T));
    const std::int64_t most = work.near ? near_group_bytes : group_bytes;
    const std::int64_t group = bytes < most ? most / bytes : 1;
    for (std::int64_t i = first; i < last; i += group) {
        std::int64_t start = i;
        std::int64_t end = last - i < group ? last : i + group;
        for (std::int64_t s = from; s < to && start < end; ++s) { // one call: all of it is inlined here
            reduce(work, s, levels[s], start, end);
            start /= s + 1 < to ? levels[s + 1].k : 1;
            end /= s + 1 < to ? levels[s + 1].k : 1;
        }
    }
}

NEUROSCALE_CLONES static void run(const Work<float>& work, const Level* levels, std::int64_t from, std::int64_t to,
                                  std::int64_t first, std::int64_t last) {
    cascade(work, levels, from, to, first, last);
}

NEUROSCALE_CLONES static void run(const Work<double>& work, const Level* levels, std::int64_t from, std::int64_t to,
                                  std::int64_t first, std::int64_t last) {
    cascade(work, levels, from, to, first, last);
}

template <typename T>
void coarsen_pyramid(const T* fine, const T* const* volumes, const PyramidOutputs<T>& outputs,
                     const PyramidShape& shape) noexcept {
    Level levels[max_pyramid_levels];
    std::int64_t depth = shape.depth;
    std::int64_t height = shape.height;
    std::int64_t width = shape.width;
    for (std::int64_t s = 0; s < shape.levels; ++s) {
        levels[s] = Level{depth, height, width, shape.factor[s], shape.volume};
        depth = shape.volume ? depth / shape.factor[s] : depth;
        height /= shape.factor[s];
        width /= shape.factor[s];
    }
    const std::int64_t size = shape.fields * std::int64_t(sizeof(T));
    const Work<T> work{fine, volumes, outputs, size * shape.depth * shape.height * shape.width <= near_bytes};
    std::int64_t slices = shape.fields * (shape.volume ? shape.depth : shape.height);
    for (std::int64_t from = 0, to = 0; from < shape.levels && slices > 0; from = to) {
        // As many levels in one pass as leave enough blocks for all threads.
        const std::int64_t bytes = size * levels[from].cells_of_field();
        const std::int64_t threads = bytes >= worth_threads ? max_threads() : 1;
        const std::int64_t wanted = threads > 1 ? 4 * threads : 1;
        slices /= levels[from].k;
        std::int64_t span = 1;
        for (to = from + 1; to < shape.levels && slices / (span * levels[to].k) >= wanted; ++to) {
            span *= levels[to].k;
        }
        const std::int64_t blocks = slices / span;
        const std::int64_t parts = parts_of(bytes, threads);
        share(parts, [&](std::int64_t part) {
            run(work, levels, from, to, blocks * part / parts * span, blocks * (part + 1) / parts * span);
        });
        slices /= span;
    }
}

template void coarsen_pyramid<float>(const float*, const float* const*, const PyramidOutputs<float>&,
                                     const PyramidShape&) noexcept;
template void coarsen_pyramid<double>(const double*, const double* const*, const PyramidOutputs<double>&,
                                      const PyramidShape&) noexcept;

} // namespace neuroscale::kernels::cpu
