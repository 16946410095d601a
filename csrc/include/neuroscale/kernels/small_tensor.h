// Small symmetric matrices: definiteness, eigenvalues, and the two projections of admissible.h, in double.
// Shared by all backends, so that they agree bit for bit. A Matrix holds one matrix, or `lanes` of them side by side
// for the vector units; no lane looks at its neighbours, so that their number does not change a bit either. Of
// symmetric matrices the upper triangle alone is used. Source: Golub & Van Loan 2013, 4.2 (elimination, Cholesky),
// 8.5 (Jacobi, in parallel order), 8.7 (both together).
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define NEUROSCALE_EVERYWHERE __host__ __device__ inline
#define NEUROSCALE_SIDE_BY_SIDE
#else
// Inlined into functions that are compiled for several CPUs, see kernels/cpu/parallel.h.
#define NEUROSCALE_EVERYWHERE inline __attribute__((always_inline))
#define NEUROSCALE_SIDE_BY_SIDE _Pragma("omp simd")
#endif

namespace neuroscale::kernels::small_tensor {

// Of each lane a number, or yes (1) and no (0): both as wide, so that they share vectors.
template <int lanes>
using Numbers = double[lanes];
template <int lanes>
using Flags = std::int64_t[lanes];

template <int d, int lanes = 1>
struct alignas(sizeof(double) * lanes) Matrix {
    Numbers<lanes> m[d][d];

    // An element of a symmetric matrix.
    NEUROSCALE_EVERYWHERE Numbers<lanes>& upper(int i, int j) { return i < j ? m[i][j] : m[j][i]; }
};

template <int lanes>
NEUROSCALE_EVERYWHERE bool all(const Flags<lanes>& flags) {
    std::int64_t yes = 1;
    for (int e = 0; e < lanes; ++e) {
        yes &= flags[e];
    }
    return yes != 0;
}

template <int d, int lanes>
NEUROSCALE_EVERYWHERE void trace(const Matrix<d, lanes>& a, Numbers<lanes>& out) {
    for (int i = 0; i < d; ++i) {
        NEUROSCALE_SIDE_BY_SIDE
        for (int e = 0; e < lanes; ++e) {
            out[e] = (i == 0 ? 0.0 : out[e]) + a.m[i][i][e];
        }
    }
}

// a becomes R with a = R^T diag(1 / R_ii) R, R upper triangular; `definite` stays where all pivots R_ii exceed `least`.
// With 0 that is where all leading minors are positive (Sylvester): the pivots are their ratios. NaN counts as no.
template <int d, int lanes>
NEUROSCALE_EVERYWHERE void eliminate(Matrix<d, lanes>& a, const Numbers<lanes>& least, Flags<lanes>& definite) {
    for (int i = 0; i < d; ++i) {
        Numbers<lanes> inverse;
        NEUROSCALE_SIDE_BY_SIDE
        for (int e = 0; e < lanes; ++e) {
            definite[e] = a.m[i][i][e] > least[e] ? definite[e] : 0;
            inverse[e] = 1.0 / a.m[i][i][e];
        }
        for (int r = i + 1; r < d; ++r) {
            Numbers<lanes> share;
            NEUROSCALE_SIDE_BY_SIDE
            for (int e = 0; e < lanes; ++e) {
                share[e] = a.m[i][r][e] * inverse[e];
            }
            for (int c = r; c < d; ++c) {
                NEUROSCALE_SIDE_BY_SIDE
                for (int e = 0; e < lanes; ++e) {
                    a.m[r][c][e] -= share[e] * a.m[i][c][e];
                }
            }
        }
    }
}

// Rotation in the plane of axes i < j.
template <int lanes>
struct alignas(sizeof(double) * lanes) Turn {
    Numbers<lanes> c;
    Numbers<lanes> s;
    int i;
    int j;

    NEUROSCALE_EVERYWHERE void apply(Numbers<lanes>& u, Numbers<lanes>& v) const {
        NEUROSCALE_SIDE_BY_SIDE
        for (int e = 0; e < lanes; ++e) {
            const double x = u[e];
            const double y = v[e];
            u[e] = c[e] * x - s[e] * y;
            v[e] = s[e] * x + c[e] * y;
        }
    }
};

// The turn that makes a_ij zero, and what it makes of a_ii, a_jj and a_ij; by no angle where `twice` is 0 and not 2.
template <int d, int lanes>
NEUROSCALE_EVERYWHERE void make_turn(Matrix<d, lanes>& a, const Numbers<lanes>& twice, Turn<lanes>& turn) {
    constexpr double tiny = 1e-300; // for 0 / 0
    const int i = turn.i;
    const int j = turn.j;
    NEUROSCALE_SIDE_BY_SIDE
    for (int e = 0; e < lanes; ++e) {
        const double x = a.m[j][j][e] - a.m[i][i][e];
        const double y = twice[e] * a.m[i][j][e];
        const double t = y / (x + std::copysign(std::sqrt(x * x + y * y) + tiny, x));
        const double change = t * a.m[i][j][e];
        a.m[i][i][e] -= change;
        a.m[j][j][e] += change;
        a.m[i][j][e] = 0.0;
        turn.c[e] = 1.0 / std::sqrt(1.0 + t * t);
        turn.s[e] = t * turn.c[e];
    }
}

// The block of `a` where the rows of one turn meet the columns of another.
template <int d, int lanes>
NEUROSCALE_EVERYWHERE void turn_block(Matrix<d, lanes>& a, const Turn<lanes>& p, const Turn<lanes>& q) {
    Numbers<lanes>& ii = a.upper(p.i, q.i);
    Numbers<lanes>& ij = a.upper(p.i, q.j);
    Numbers<lanes>& ji = a.upper(p.j, q.i);
    Numbers<lanes>& jj = a.upper(p.j, q.j);
    NEUROSCALE_SIDE_BY_SIDE
    for (int e = 0; e < lanes; ++e) {
        const double w = p.c[e] * ii[e] - p.s[e] * ji[e];
        const double x = p.c[e] * ij[e] - p.s[e] * jj[e];
        const double y = p.s[e] * ii[e] + p.c[e] * ji[e];
        const double z = p.s[e] * ij[e] + p.c[e] * jj[e];
        ii[e] = q.c[e] * w - q.s[e] * x;
        ij[e] = q.s[e] * w + q.c[e] * x;
        ji[e] = q.c[e] * y - q.s[e] * z;
        jj[e] = q.s[e] * y + q.c[e] * z;
    }
}

// Whether any lane is not diagonal yet: 2 in `twice` for those, 0 for the others.
template <int d, int lanes>
NEUROSCALE_EVERYWHERE bool unfinished(const Matrix<d, lanes>& a, Numbers<lanes>& twice) {
    Numbers<lanes> off = {};
    Numbers<lanes> on = {};
    for (int i = 0; i < d; ++i) {
        for (int j = i; j < d; ++j) {
            Numbers<lanes>& sum = i == j ? on : off;
            NEUROSCALE_SIDE_BY_SIDE
            for (int e = 0; e < lanes; ++e) {
                sum[e] += a.m[i][j][e] * a.m[i][j][e];
            }
        }
    }
    double any = 0.0;
    for (int e = 0; e < lanes; ++e) {
        twice[e] = off[e] > 1e-34 * on[e] ? 2.0 : 0.0;
        any += twice[e];
    }
    return any > 0.0;
}

// One sweep: as in a tournament each axis meets each other once, and the d / 2 pairs of a round are turned together.
// q becomes q times the turns.
template <int d, int lanes>
NEUROSCALE_EVERYWHERE void sweep(Matrix<d, lanes>& a, Matrix<d, lanes>& q, const Numbers<lanes>& twice) {
    constexpr int pairs = d / 2;
    constexpr int rounds = d % 2 == 0 ? d - 1 : d;
    for (int round = 0; round < rounds; ++round) {
        Turn<lanes> turns[pairs];
        for (int k = 0; k < pairs; ++k) {
            const int step = d % 2 == 0 ? k : k + 1;
            const int one = (round + step) % rounds;
            const int other = step == 0 ? d - 1 : (round + rounds - step) % rounds;
            turns[k].i = one < other ? one : other;
            turns[k].j = one < other ? other : one;
            make_turn(a, twice, turns[k]);
        }
        for (int k = 0; k < pairs; ++k) {
            const Turn<lanes>& turn = turns[k];
            for (int l = k + 1; l < pairs; ++l) {
                turn_block(a, turn, turns[l]);
            }
            if (d % 2 != 0) { // the axis that meets nobody
                turn.apply(a.upper(round, turn.i), a.upper(round, turn.j));
            }
            for (int row = 0; row < d; ++row) {
                turn.apply(q.m[row][turn.i], q.m[row][turn.j]);
            }
        }
    }
}

// Eigenvalues on the diagonal of `a`; q becomes q Q, the eigenvectors are the columns of Q. Where a matrix is not
// finite, neither is the result.
template <int d, int lanes>
NEUROSCALE_EVERYWHERE void eigen(Matrix<d, lanes>& a, Matrix<d, lanes>& q) {
    constexpr int sweeps = 30;
    Numbers<lanes> twice;
    for (int s = 0; s < sweeps && unfinished(a, twice); ++s) {
        sweep(a, q, twice);
    }
}

// q diag(value) q^T.
template <int d, int lanes>
NEUROSCALE_EVERYWHERE void compose(const Matrix<d, lanes>& q, const Numbers<lanes> (&value)[d], Matrix<d, lanes>& out) {
    for (int i = 0; i < d; ++i) {
        for (int j = i; j < d; ++j) {
            NEUROSCALE_SIDE_BY_SIDE
            for (int e = 0; e < lanes; ++e) {
                double sum = 0.0;
                for (int k = 0; k < d; ++k) {
                    sum += q.m[i][k][e] * value[k][e] * q.m[j][k][e];
                }
                out.m[i][j][e] = sum;
            }
        }
    }
}

// Eigenvalues of t raised to `lowest` times the largest one in size, and to `least`.
template <int d, int lanes>
NEUROSCALE_EVERYWHERE void raise(Matrix<d, lanes>& t, double lowest, Numbers<lanes>& least) {
    Matrix<d, lanes> q;
    for (int i = 0; i < d; ++i) {
        for (int j = 0; j < d; ++j) {
            for (int e = 0; e < lanes; ++e) {
                q.m[i][j][e] = i == j ? 1.0 : 0.0;
            }
        }
    }
    eigen(t, q);
    for (int i = 0; i < d; ++i) {
        NEUROSCALE_SIDE_BY_SIDE
        for (int e = 0; e < lanes; ++e) {
            const double share = lowest * std::fabs(t.m[i][i][e]);
            least[e] = share > least[e] ? share : least[e];
        }
    }
    Numbers<lanes> value[d];
    for (int i = 0; i < d; ++i) {
        NEUROSCALE_SIDE_BY_SIDE
        for (int e = 0; e < lanes; ++e) {
            value[i][e] = t.m[i][i][e] < least[e] ? least[e] : t.m[i][i][e];
        }
    }
    compose(q, value, t);
}

// Lower triangular C with C C^T = a, and its inverse. Where a pivot is no more than `least`, the eigenvalues of `a` are
// first raised to that.
template <int d, int lanes>
NEUROSCALE_EVERYWHERE void root(Matrix<d, lanes>& a, Numbers<lanes>& least, Matrix<d, lanes>& c,
                                Matrix<d, lanes>& inverse) {
    Matrix<d, lanes> r = a;
    Flags<lanes> definite;
    for (int e = 0; e < lanes; ++e) {
        definite[e] = 1;
    }
    eliminate(r, least, definite);
    if (!all(definite)) {
        raise(a, 0.0, least);
        Matrix<d, lanes> raised = a;
        Flags<lanes> any;
        eliminate(raised, least, any);
        for (int i = 0; i < d; ++i) {
            for (int j = i; j < d; ++j) {
                for (int e = 0; e < lanes; ++e) {
                    r.m[i][j][e] = definite[e] != 0 ? r.m[i][j][e] : raised.m[i][j][e];
                }
            }
        }
    }
    for (int j = 0; j < d; ++j) {
        Numbers<lanes> scale;
        NEUROSCALE_SIDE_BY_SIDE
        for (int e = 0; e < lanes; ++e) {
            scale[e] = 1.0 / std::sqrt(r.m[j][j][e]);
        }
        for (int i = 0; i < d; ++i) {
            NEUROSCALE_SIDE_BY_SIDE
            for (int e = 0; e < lanes; ++e) {
                c.m[i][j][e] = i < j ? 0.0 : r.m[j][i][e] * scale[e];
                inverse.m[i][j][e] = i == j ? scale[e] : 0.0;
            }
        }
    }
    for (int j = 0; j < d; ++j) {
        for (int i = j + 1; i < d; ++i) {
            NEUROSCALE_SIDE_BY_SIDE
            for (int e = 0; e < lanes; ++e) {
                double sum = 0.0;
                for (int k = j; k < i; ++k) {
                    sum += c.m[i][k][e] * inverse.m[k][j][e];
                }
                inverse.m[i][j][e] = -sum * inverse.m[i][i][e];
            }
        }
    }
}

// w a w^T with lower triangular w.
template <int d, int lanes>
NEUROSCALE_EVERYWHERE void congruent(const Matrix<d, lanes>& w, Matrix<d, lanes>& a) {
    Matrix<d, lanes> half;
    for (int i = 0; i < d; ++i) {
        for (int j = 0; j < d; ++j) {
            NEUROSCALE_SIDE_BY_SIDE
            for (int e = 0; e < lanes; ++e) {
                double sum = 0.0;
                for (int k = 0; k <= i; ++k) {
                    sum += w.m[i][k][e] * (k < j ? a.m[k][j][e] : a.m[j][k][e]);
                }
                half.m[i][j][e] = sum;
            }
        }
    }
    for (int i = 0; i < d; ++i) {
        for (int j = i; j < d; ++j) {
            NEUROSCALE_SIDE_BY_SIDE
            for (int e = 0; e < lanes; ++e) {
                double sum = 0.0;
                for (int k = 0; k <= j; ++k) {
                    sum += half.m[i][k][e] * w.m[j][k][e];
                }
                a.m[i][j][e] = sum;
            }
        }
    }
}

// lower + C clip_[0,1](C^-1 (t - lower) C^-T) C^T with C C^T = upper - lower, the same for each such C.
template <int d, int lanes>
NEUROSCALE_EVERYWHERE void clip(Matrix<d, lanes>& t, const Matrix<d, lanes>& lower, const Matrix<d, lanes>& upper) {
    Matrix<d, lanes> width;
    for (int i = 0; i < d; ++i) {
        for (int j = i; j < d; ++j) {
            NEUROSCALE_SIDE_BY_SIDE
            for (int e = 0; e < lanes; ++e) {
                width.m[i][j][e] = upper.m[i][j][e] - lower.m[i][j][e];
                t.m[i][j][e] -= lower.m[i][j][e];
            }
        }
    }
    Numbers<lanes> least;
    trace(upper, least);
    for (int e = 0; e < lanes; ++e) {
        least[e] = 1e-14 * std::fabs(least[e]);
    }
    Matrix<d, lanes> c;
    Matrix<d, lanes> inverse;
    root(width, least, c, inverse);
    congruent(inverse, t);
    eigen(t, c);
    Numbers<lanes> value[d];
    for (int i = 0; i < d; ++i) {
        NEUROSCALE_SIDE_BY_SIDE
        for (int e = 0; e < lanes; ++e) {
            const double positive = t.m[i][i][e] < 0.0 ? 0.0 : t.m[i][i][e];
            value[i][e] = positive > 1.0 ? 1.0 : positive;
        }
    }
    compose(c, value, t);
    for (int i = 0; i < d; ++i) {
        for (int j = i; j < d; ++j) {
            NEUROSCALE_SIDE_BY_SIDE
            for (int e = 0; e < lanes; ++e) {
                t.m[i][j][e] += lower.m[i][j][e];
            }
        }
    }
}

} // namespace neuroscale::kernels::small_tensor
