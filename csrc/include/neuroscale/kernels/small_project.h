// What happens to one tensor of admissible.h: the same steps on every backend.
#pragma once

#include "neuroscale/kernels/admissible.h"
#include "neuroscale/kernels/small_tensor.h"

namespace neuroscale::kernels::small_tensor {

// The symmetric part of the block at `t`; `symmetric` and `finite` say what was found.
template <int d, typename T>
NEUROSCALE_EVERYWHERE inline Matrix<d> symmetric_part(const T* t, std::int64_t stride, bool& symmetric, bool& finite) {
    Matrix<d> s;
    symmetric = true;
    double sum = 0.0;
    for (int i = 0; i < d; ++i) {
        for (int j = i; j < d; ++j) {
            const double one = static_cast<double>(t[i * stride + j]);
            const double other = static_cast<double>(t[j * stride + i]);
            symmetric = symmetric && one == other;
            s.m[i][j] = s.m[j][i] = one == other ? one : 0.5 * (one + other);
            sum += 0.0 * one + 0.0 * other;
        }
    }
    finite = sum == 0.0;
    return s;
}

// `s` with its distance to a bound: sign * (s - bound) + slack.
template <int d, typename T>
NEUROSCALE_EVERYWHERE inline Matrix<d> distance(const Matrix<d>& s, const T* bound, double sign, double slack) {
    Matrix<d> out;
    for (int i = 0; i < d; ++i) {
        for (int j = 0; j < d; ++j) {
            const double b = 0.5 * (static_cast<double>(bound[i * d + j]) + static_cast<double>(bound[j * d + i]));
            out.m[i][j] = sign * (s.m[i][j] - b) + (i == j ? slack : 0.0);
        }
    }
    return out;
}

template <int d, typename T>
NEUROSCALE_EVERYWHERE inline Matrix<d> load(const T* bound) {
    Matrix<d> out;
    for (int i = 0; i < d; ++i) {
        for (int j = 0; j < d; ++j) {
            out.m[i][j] = static_cast<double>(bound[i * d + j]);
        }
    }
    return out;
}

template <int d, typename T>
NEUROSCALE_EVERYWHERE inline void project(const Tensors<T>& a, std::int64_t i) {
    a.changed[i] = 0;
    if (a.wanted != nullptr && a.wanted[i] == 0) {
        return;
    }
    T* t = a.tensors + i * d * a.stride + a.first;
    bool symmetric = false;
    bool finite = false;
    Matrix<d> s = symmetric_part<d>(t, a.stride, symmetric, finite);
    if (!finite) {
        a.changed[i] = 3;
        return;
    }
    bool inside = false;
    if (a.lower != nullptr) {
        const T* lower = a.lower + i * d * d;
        const T* upper = a.upper + i * d * d;
        const double slack = a.slack * trace(load<d>(upper));
        inside =
            positive_definite(distance(s, lower, 1.0, slack)) && positive_definite(distance(s, upper, -1.0, slack));
        s = inside ? s : clip(s, load<d>(lower), load<d>(upper));
    } else {
        inside = positive_definite(s);
        s = inside ? s : raise(s, a.lowest);
    }
    if (inside && symmetric) {
        return;
    }
    for (int r = 0; r < d; ++r) {
        for (int c = 0; c < d; ++c) {
            t[r * a.stride + c] = static_cast<T>(s.m[r][c]);
        }
    }
    a.changed[i] = inside ? 1 : 2;
}

} // namespace neuroscale::kernels::small_tensor
