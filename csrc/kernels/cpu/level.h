// The sides of a level of the pyramid and the rows that become one coarse row.
#pragma once

#include "parallel.h"

namespace neuroscale::kernels::cpu {

// The k (or k * k in a volume) rows that become one coarse row.
struct Rows {
    std::int64_t planes;
    std::int64_t k;
    std::int64_t to_plane;
    std::int64_t to_row;
};

// A level's sides. Its coarse rows are numbered through the batch; `source` is where the rows of one start.
struct Level {
    std::int64_t depth; // 1 in a plane
    std::int64_t height;
    std::int64_t width;
    std::int64_t k;
    bool volume;

    NEUROSCALE_INLINE Rows rows() const { return {volume ? k : 1, k, height * width, width}; }
    NEUROSCALE_INLINE std::int64_t cells() const { return (volume ? k : 1) * k * k; }
    NEUROSCALE_INLINE std::int64_t cells_of_field() const { return depth * height * width; }
    NEUROSCALE_INLINE std::int64_t coarse_rows() const { return volume ? height / k : 1; } // of a slice
    NEUROSCALE_INLINE std::int64_t coarse_width() const { return width / k; }
    NEUROSCALE_INLINE std::int64_t field_rows() const { return (volume ? depth / k : 1) * (height / k); } // coarse
    NEUROSCALE_INLINE std::int64_t slice() const { return volume ? height * width : width; }
    NEUROSCALE_INLINE std::int64_t source(std::int64_t row) const {
        return volume ? (row / (height / k) * height * k + row % (height / k) * k) * width : row * k * width;
    }
};

} // namespace neuroscale::kernels::cpu
