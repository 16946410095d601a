// What happens to tensors of admissible.h, `lanes` of them side by side: the same steps on every backend.
#pragma once

#include "neuroscale/kernels/admissible.h"
#include "neuroscale/kernels/small_tensor.h"

namespace neuroscale::kernels::small_tensor {

// Values of `changed`.
constexpr std::uint8_t as_it_was = 0;
constexpr std::uint8_t made_symmetric = 1;
constexpr std::uint8_t projected = 2;
constexpr std::uint8_t not_finite = 3;

// Symmetric parts of tensors, whether they were symmetric, and their bounds.
template <int d, int lanes>
struct Group {
    Matrix<d, lanes> t;
    Flags<lanes> symmetric;
    Matrix<d, lanes> lower;
    Matrix<d, lanes> upper;

    NEUROSCALE_EVERYWHERE Group() {
        for (int e = 0; e < lanes; ++e) {
            symmetric[e] = 1;
        }
    }
};

// Row i of tensors; the first block of d x d begins at `from`, the others d rows further each.
template <int d, int lanes, typename T>
NEUROSCALE_EVERYWHERE void load_row(const T* from, std::int64_t stride, int i, Group<d, lanes>& group) {
    for (int j = i; j < d; ++j) {
        NEUROSCALE_SIDE_BY_SIDE
        for (int e = 0; e < lanes; ++e) {
            const double one = static_cast<double>(from[(e * d + i) * stride + j]);
            const double other = static_cast<double>(from[(e * d + j) * stride + i]);
            group.symmetric[e] = one == other ? group.symmetric[e] : 0;
            group.t.m[i][j][e] = 0.5 * one + 0.5 * other;
        }
    }
}

// Row i of bounds, which are symmetric.
template <int d, int lanes, typename T>
NEUROSCALE_EVERYWHERE void load_row(const T* from, int i, Matrix<d, lanes>& bound) {
    for (int j = i; j < d; ++j) {
        NEUROSCALE_SIDE_BY_SIDE
        for (int e = 0; e < lanes; ++e) {
            bound.m[i][j][e] = static_cast<double>(from[(e * d + i) * d + j]);
        }
    }
}

template <int d, int lanes>
NEUROSCALE_EVERYWHERE void finite(const Matrix<d, lanes>& a, Flags<lanes>& out) {
    Numbers<lanes> sum = {};
    for (int i = 0; i < d; ++i) {
        for (int j = i; j < d; ++j) {
            NEUROSCALE_SIDE_BY_SIDE
            for (int e = 0; e < lanes; ++e) {
                sum[e] += 0.0 * a.m[i][j][e];
            }
        }
    }
    for (int e = 0; e < lanes; ++e) {
        out[e] = sum[e] == 0.0 ? 1 : 0;
    }
}

// Keeps `inside` where sign * (t - bound) + slack is definite.
template <int d, int lanes>
NEUROSCALE_EVERYWHERE void and_beyond(const Matrix<d, lanes>& t, const Matrix<d, lanes>& bound, double sign,
                                      const Numbers<lanes>& slack, Flags<lanes>& inside) {
    Matrix<d, lanes> distance;
    for (int i = 0; i < d; ++i) {
        for (int j = i; j < d; ++j) {
            NEUROSCALE_SIDE_BY_SIDE
            for (int e = 0; e < lanes; ++e) {
                const double room = i == j ? slack[e] : 0.0;
                distance.m[i][j][e] = sign * (t.m[i][j][e] - bound.m[i][j][e]) + room;
            }
        }
    }
    const Numbers<lanes> zero = {};
    eliminate(distance, zero, inside);
}

// What is to happen to each tensor.
template <int d, int lanes>
NEUROSCALE_EVERYWHERE void look(const Group<d, lanes>& group, bool bounded, double slack,
                                std::uint8_t (&verdict)[lanes]) {
    Flags<lanes> inside;
    for (int e = 0; e < lanes; ++e) {
        inside[e] = 1;
    }
    if (bounded) {
        Numbers<lanes> room;
        trace(group.upper, room);
        for (int e = 0; e < lanes; ++e) {
            room[e] *= slack;
        }
        and_beyond(group.t, group.lower, 1.0, room, inside);
        and_beyond(group.t, group.upper, -1.0, room, inside);
    } else {
        Matrix<d, lanes> t = group.t;
        const Numbers<lanes> zero = {};
        eliminate(t, zero, inside);
    }
    Flags<lanes> is_finite;
    finite(group.t, is_finite);
    for (int e = 0; e < lanes; ++e) {
        const std::uint8_t good = group.symmetric[e] != 0 ? as_it_was : made_symmetric;
        const std::uint8_t which = inside[e] != 0 ? good : projected;
        verdict[e] = is_finite[e] != 0 ? which : not_finite;
    }
}

template <int d, int lanes>
NEUROSCALE_EVERYWHERE void correct(Group<d, lanes>& group, bool bounded, double lowest) {
    if (bounded) {
        clip(group.t, group.lower, group.upper);
    } else {
        Numbers<lanes> least = {};
        raise(group.t, lowest, least);
    }
}

// Writes the symmetric matrix of lane e as tensor i.
template <int d, int lanes, typename T>
NEUROSCALE_EVERYWHERE void store(const Tensors<T>& a, std::int64_t i, const Matrix<d, lanes>& t, int e) {
    T* to = a.tensors + i * d * a.stride + a.first;
    for (int r = 0; r < d; ++r) {
        for (int c = r; c < d; ++c) {
            to[r * a.stride + c] = to[c * a.stride + r] = static_cast<T>(t.m[r][c][e]);
        }
    }
}

// All of it, for one tensor.
template <int d, typename T>
NEUROSCALE_EVERYWHERE void project(const Tensors<T>& a, std::int64_t i) {
    const bool bounded = a.lower != nullptr;
    std::uint8_t verdict[1] = {as_it_was};
    if (a.wanted == nullptr || a.wanted[i] != 0) {
        Group<d, 1> group;
        for (int row = 0; row < d; ++row) {
            load_row(a.tensors + i * d * a.stride + a.first, a.stride, row, group);
            if (bounded) {
                load_row(a.lower + i * d * d, row, group.lower);
                load_row(a.upper + i * d * d, row, group.upper);
            }
        }
        look(group, bounded, a.slack, verdict);
        if (verdict[0] == projected) {
            correct(group, bounded, a.lowest);
        }
        if (verdict[0] == projected || verdict[0] == made_symmetric) {
            store(a, i, group.t, 0);
        }
    }
    a.changed[i] = verdict[0];
}

} // namespace neuroscale::kernels::small_tensor
