// Small symmetric matrices: definiteness, eigenvalues, and the two projections of admissible.h, in double.
// Shared by all backends, so that they agree bit for bit. Source: Golub & Van Loan 2013, 8.5 (cyclic Jacobi).
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define NEUROSCALE_EVERYWHERE __host__ __device__
#else
#define NEUROSCALE_EVERYWHERE
#endif

namespace neuroscale::kernels::small_tensor {

template <int d>
struct Matrix {
    double m[d][d];
};

// All leading minors positive (Sylvester), by elimination: the pivots are their ratios. NaN counts as no.
template <int d>
NEUROSCALE_EVERYWHERE inline bool positive_definite(Matrix<d> a) {
    bool definite = true;
    for (int i = 0; i < d; ++i) {
        definite = definite && a.m[i][i] > 0.0;
        for (int r = i + 1; r < d; ++r) {
            const double share = a.m[r][i] / a.m[i][i];
            for (int c = r; c < d; ++c) {
                a.m[r][c] -= share * a.m[i][c];
                a.m[c][r] = a.m[r][c];
            }
        }
    }
    return definite;
}

// Eigenvalues on the diagonal of `a`, eigenvectors in the columns of `q`. A matrix that is not finite gives NaN.
template <int d>
NEUROSCALE_EVERYWHERE inline void eigen(Matrix<d>& a, Matrix<d>& q) {
    for (int i = 0; i < d; ++i) {
        for (int j = 0; j < d; ++j) {
            q.m[i][j] = i == j ? 1.0 : 0.0;
        }
    }
    constexpr int sweeps = 30;
    for (int sweep = 0; sweep < sweeps; ++sweep) {
        double off = 0.0;
        double on = 0.0;
        for (int i = 0; i < d; ++i) {
            on += a.m[i][i] * a.m[i][i];
            for (int j = i + 1; j < d; ++j) {
                off += a.m[i][j] * a.m[i][j];
            }
        }
        if (!(off > 1e-34 * on)) {
            return;
        }
        for (int i = 0; i < d; ++i) {
            for (int j = i + 1; j < d; ++j) {
                if (a.m[i][j] == 0.0) {
                    continue;
                }
                const double theta = (a.m[j][j] - a.m[i][i]) / (2.0 * a.m[i][j]);
                const double t = (theta < 0.0 ? -1.0 : 1.0) / (std::fabs(theta) + std::sqrt(1.0 + theta * theta));
                const double c = 1.0 / std::sqrt(1.0 + t * t);
                const double s = t * c;
                for (int k = 0; k < d; ++k) {
                    const double u = a.m[k][i];
                    const double v = a.m[k][j];
                    a.m[k][i] = c * u - s * v;
                    a.m[k][j] = s * u + c * v;
                }
                for (int k = 0; k < d; ++k) {
                    const double u = a.m[i][k];
                    const double v = a.m[j][k];
                    a.m[i][k] = c * u - s * v;
                    a.m[j][k] = s * u + c * v;
                    const double x = q.m[k][i];
                    const double y = q.m[k][j];
                    q.m[k][i] = c * x - s * y;
                    q.m[k][j] = s * x + c * y;
                }
                a.m[i][j] = a.m[j][i] = 0.0;
            }
        }
    }
}

// q diag(value) q^T, exactly symmetric.
template <int d>
NEUROSCALE_EVERYWHERE inline Matrix<d> compose(const Matrix<d>& q, const double* value) {
    Matrix<d> out;
    for (int i = 0; i < d; ++i) {
        for (int j = i; j < d; ++j) {
            double sum = 0.0;
            for (int k = 0; k < d; ++k) {
                sum += q.m[i][k] * value[k] * q.m[j][k];
            }
            out.m[i][j] = out.m[j][i] = sum;
        }
    }
    return out;
}

template <int d>
NEUROSCALE_EVERYWHERE inline Matrix<d> product(const Matrix<d>& a, const Matrix<d>& b) {
    Matrix<d> out;
    for (int i = 0; i < d; ++i) {
        for (int j = 0; j < d; ++j) {
            double sum = 0.0;
            for (int k = 0; k < d; ++k) {
                sum += a.m[i][k] * b.m[k][j];
            }
            out.m[i][j] = sum;
        }
    }
    return out;
}

template <int d>
NEUROSCALE_EVERYWHERE inline double trace(const Matrix<d>& a) {
    double sum = 0.0;
    for (int i = 0; i < d; ++i) {
        sum += a.m[i][i];
    }
    return sum;
}

// Eigenvalues raised to `lowest` times the largest one in size.
template <int d>
NEUROSCALE_EVERYWHERE inline Matrix<d> raise(Matrix<d> t, double lowest) {
    Matrix<d> q;
    eigen(t, q);
    double value[d];
    double largest = 0.0;
    for (int i = 0; i < d; ++i) {
        value[i] = t.m[i][i];
        largest = std::fabs(value[i]) > largest ? std::fabs(value[i]) : largest;
    }
    for (int i = 0; i < d; ++i) {
        value[i] = value[i] < lowest * largest ? lowest * largest : value[i];
    }
    return compose(q, value);
}

// lower + D^1/2 clip_[0,1](D^-1/2 (t - lower) D^-1/2) D^1/2 with D = upper - lower.
template <int d>
NEUROSCALE_EVERYWHERE inline Matrix<d> clip(const Matrix<d>& t, const Matrix<d>& lower, const Matrix<d>& upper) {
    Matrix<d> width;
    Matrix<d> above;
    for (int i = 0; i < d; ++i) {
        for (int j = 0; j < d; ++j) {
            width.m[i][j] = 0.5 * ((upper.m[i][j] - lower.m[i][j]) + (upper.m[j][i] - lower.m[j][i]));
            above.m[i][j] = t.m[i][j] - lower.m[i][j];
        }
    }
    Matrix<d> q;
    eigen(width, q);
    const double least = 1e-14 * std::fabs(trace(upper));
    double root[d];
    double inverse[d];
    for (int i = 0; i < d; ++i) {
        const double value = width.m[i][i] < least ? least : width.m[i][i];
        root[i] = std::sqrt(value);
        inverse[i] = 1.0 / root[i];
    }
    const Matrix<d> whiten = compose(q, inverse);
    Matrix<d> share = product(product(whiten, above), whiten);
    for (int i = 0; i < d; ++i) {
        for (int j = i + 1; j < d; ++j) {
            share.m[i][j] = share.m[j][i] = 0.5 * (share.m[i][j] + share.m[j][i]);
        }
    }
    Matrix<d> base;
    eigen(share, base);
    double value[d];
    for (int i = 0; i < d; ++i) {
        value[i] = share.m[i][i] < 0.0 ? 0.0 : share.m[i][i] > 1.0 ? 1.0 : share.m[i][i];
    }
    Matrix<d> out = compose(product(compose(q, root), base), value);
    for (int i = 0; i < d; ++i) {
        for (int j = 0; j < d; ++j) {
            out.m[i][j] += lower.m[i][j];
        }
    }
    return out;
}

} // namespace neuroscale::kernels::small_tensor
