// Nearly all tensors of a run are admissible: they are looked at eight at a time, side by side, and those that are not
// are collected and projected eight at a time. The operations are the reference's, see small_tensor.h.
#include "neuroscale/kernels/admissible.h"

#include "neuroscale/kernels/small_project.h"
#include "parallel.h"

#include <algorithm>

namespace neuroscale::kernels::cpu {

constexpr int lanes = 8;
// Tensors that a thread takes at a time: few, as those that are not admissible may lie together in the batch.
constexpr std::int64_t part = 512;

template <int d>
using Group = small_tensor::Group<d, lanes>;

// The same for float and double, and most of the code.
NEUROSCALE_CLONES static void correct(Group<2>& group, bool bounded, double lowest) {
    small_tensor::correct(group, bounded, lowest);
}

NEUROSCALE_CLONES static void correct(Group<3>& group, bool bounded, double lowest) {
    small_tensor::correct(group, bounded, lowest);
}

NEUROSCALE_CLONES static void correct(Group<6>& group, bool bounded, double lowest) {
    small_tensor::correct(group, bounded, lowest);
}

// Tensors i ... i + 7. The loads jump; the next eight are asked for in the order of the memory, a few lines at a time.
template <int d, typename T>
NEUROSCALE_INLINE void load(const Tensors<T>& a, std::int64_t i, Group<d>& group) {
    constexpr std::int64_t row_bytes = lanes * d * std::int64_t{sizeof(T)};
    const T* tensors = a.tensors + i * d * a.stride + a.first;
    for (int row = 0; row < d; ++row) {
        fetch(tensors, (d + row) * row_bytes / d * a.stride, row_bytes / d * a.stride);
        small_tensor::load_row(tensors, a.stride, row, group);
        if (a.lower != nullptr) {
            fetch(a.lower + i * d * d, (d + row) * row_bytes, row_bytes);
            small_tensor::load_row(a.lower + i * d * d, row, group.lower);
            fetch(a.upper + i * d * d, (d + row) * row_bytes, row_bytes);
            small_tensor::load_row(a.upper + i * d * d, row, group.upper);
        }
    }
}

template <int d>
NEUROSCALE_INLINE void copy_lane(const small_tensor::Matrix<d, lanes>& from, int e, small_tensor::Matrix<d, lanes>& to,
                                 int place) {
    for (int i = 0; i < d; ++i) {
        for (int j = i; j < d; ++j) {
            to.m[i][j][place] = from.m[i][j][e];
        }
    }
}

// Tensors that are to be projected.
template <int d>
struct Waiting {
    Group<d> group;
    std::int64_t place[lanes];
    int count = 0;

    NEUROSCALE_INLINE void take(const Group<d>& from, int e, std::int64_t i) {
        place[count] = i;
        copy_lane(from.t, e, group.t, count);
        copy_lane(from.lower, e, group.lower, count);
        copy_lane(from.upper, e, group.upper, count);
        ++count;
    }

    // Lanes that are free repeat the first: the same tensor, written to the same place.
    template <typename T>
    NEUROSCALE_INLINE void project(const Tensors<T>& a) {
        while (count < lanes) {
            take(group, 0, place[0]);
        }
        correct(group, a.lower != nullptr, a.lowest);
        for (int e = 0; e < lanes; ++e) {
            small_tensor::store(a, place[e], group.t, e);
        }
        count = 0;
    }
};

// Whole groups of tensors.
template <int d, typename T>
NEUROSCALE_INLINE void project_range(const Tensors<T>& a, std::int64_t first, std::int64_t last) {
    Waiting<d> waiting;
    for (std::int64_t i = first; i < last; i += lanes) {
        Group<d> group;
        std::uint8_t verdict[lanes];
        load(a, i, group);
        small_tensor::look(group, a.lower != nullptr, a.slack, verdict);
        for (int e = 0; e < lanes; ++e) {
            const bool wanted = a.wanted == nullptr || a.wanted[i + e] != 0;
            a.changed[i + e] = wanted ? verdict[e] : small_tensor::as_it_was;
            if (wanted && verdict[e] == small_tensor::made_symmetric) {
                small_tensor::store(a, i + e, group.t, e);
            }
            if (wanted && verdict[e] == small_tensor::projected) {
                waiting.take(group, e, i + e);
            }
            if (waiting.count == lanes) {
                waiting.project(a);
            }
        }
    }
    if (waiting.count > 0) {
        waiting.project(a);
    }
}

template <typename T>
NEUROSCALE_INLINE void project_any(const Tensors<T>& a, std::int64_t first, std::int64_t last) {
    switch (a.d) {
    case 2:
        return project_range<2>(a, first, last);
    case 3:
        return project_range<3>(a, first, last);
    default:
        return project_range<6>(a, first, last);
    }
}

NEUROSCALE_CLONES static void project_part(const Tensors<float>& a, std::int64_t first, std::int64_t last) {
    project_any(a, first, last);
}

NEUROSCALE_CLONES static void project_part(const Tensors<double>& a, std::int64_t first, std::int64_t last) {
    project_any(a, first, last);
}

// The tensors from the first of them on.
template <typename T>
static Tensors<T> beyond(const Tensors<T>& a, std::int64_t first) {
    Tensors<T> rest = a;
    rest.tensors += first * a.d * a.stride;
    rest.lower += a.lower == nullptr ? 0 : first * a.d * a.d;
    rest.upper += a.upper == nullptr ? 0 : first * a.d * a.d;
    rest.wanted += a.wanted == nullptr ? 0 : first;
    rest.changed += first;
    rest.n -= first;
    return rest;
}

template <typename T>
void admissible(const Tensors<T>& a) noexcept {
    const bool threads = a.n * a.d * a.d * std::int64_t(sizeof(T)) * 3 >= worth_threads;
    const std::int64_t whole = a.n / lanes * lanes;
    share((whole + part - 1) / part,
          [&](std::int64_t p) { project_part(a, p * part, std::min((p + 1) * part, whole)); }, threads);
    reference::admissible(beyond(a, whole)); // fewer than a group
}

template void admissible<float>(const Tensors<float>&) noexcept;
template void admissible<double>(const Tensors<double>&) noexcept;

} // namespace neuroscale::kernels::cpu
