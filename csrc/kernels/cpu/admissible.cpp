// Nearly all tensors of a run are admissible: eight at a time are checked side by side, and only those that are not go
// through the projection, which is the same code as in the reference.
#include "neuroscale/kernels/admissible.h"

#include "neuroscale/kernels/small_project.h"
#include "parallel.h"

#include <algorithm>

namespace neuroscale::kernels::cpu {

constexpr int lanes = 8;

// The same elimination as small_tensor::positive_definite, on eight matrices [row][column][lane]; and into `good`.
template <int d>
NEUROSCALE_INLINE void and_definite(double (&a)[d][d][lanes], bool (&good)[lanes]) {
    for (int i = 0; i < d; ++i) {
        for (int e = 0; e < lanes; ++e) {
            good[e] = good[e] & (a[i][i][e] > 0.0);
        }
        for (int r = i + 1; r < d; ++r) {
            for (int c = r; c < d; ++c) {
                for (int e = 0; e < lanes; ++e) {
                    a[r][c][e] -= a[i][r][e] / a[i][i][e] * a[i][c][e];
                }
            }
        }
    }
}

// Upper triangle of sign * (t - bound) + slack of eight tensors.
template <int d, typename T>
NEUROSCALE_INLINE void and_beyond(const double (&t)[d][d][lanes], const T* bound, double sign,
                                  const double (&slack)[lanes], bool (&good)[lanes]) {
    double a[d][d][lanes];
    for (int i = 0; i < d; ++i) {
        for (int j = i; j < d; ++j) {
            for (int e = 0; e < lanes; ++e) {
                const T* b = bound + e * d * d;
                const double mean = 0.5 * (static_cast<double>(b[i * d + j]) + static_cast<double>(b[j * d + i]));
                a[i][j][e] = sign * (t[i][j][e] - mean) + (i == j ? slack[e] : 0.0);
            }
        }
    }
    and_definite<d>(a, good);
}

// Whether tensors i ... i + 7 are finite, symmetric and admissible as they are.
template <int d, typename T>
NEUROSCALE_INLINE void check(const Tensors<T>& a, std::int64_t i, bool (&good)[lanes]) {
    double t[d][d][lanes];
    const T* source = a.tensors + i * d * a.stride + a.first;
    for (int r = 0; r < d; ++r) {
        for (int c = r; c < d; ++c) {
            for (int e = 0; e < lanes; ++e) {
                const double one = static_cast<double>(source[(e * d + r) * a.stride + c]);
                const double other = static_cast<double>(source[(e * d + c) * a.stride + r]);
                good[e] = good[e] & (one == other) & (one - one == 0.0);
                t[r][c][e] = one;
            }
        }
    }
    if (a.lower == nullptr) {
        and_definite<d>(t, good);
        return;
    }
    double slack[lanes] = {};
    for (int r = 0; r < d; ++r) {
        for (int e = 0; e < lanes; ++e) {
            slack[e] += static_cast<double>(a.upper[((i + e) * d + r) * d + r]);
        }
    }
    for (int e = 0; e < lanes; ++e) {
        slack[e] *= a.slack;
    }
    and_beyond<d>(t, a.lower + i * d * d, 1.0, slack, good);
    and_beyond<d>(t, a.upper + i * d * d, -1.0, slack, good);
}

template <int d, typename T>
NEUROSCALE_INLINE void project_range(const Tensors<T>& a, std::int64_t first, std::int64_t last) {
    std::int64_t i = first;
    for (; i + lanes <= last; i += lanes) {
        bool good[lanes];
        std::fill(good, good + lanes, true);
        check<d>(a, i, good);
        for (int e = 0; e < lanes; ++e) {
            if (good[e]) {
                a.changed[i + e] = 0;
            } else {
                small_tensor::project<d>(a, i + e);
            }
        }
    }
    for (; i < last; ++i) {
        small_tensor::project<d>(a, i);
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

template <typename T>
void admissible(const Tensors<T>& a) noexcept {
    constexpr std::int64_t part = 1024;
    const bool threads = a.n * a.d * a.d * std::int64_t(sizeof(T)) * 3 >= worth_threads;
#pragma omp parallel for schedule(static) if (threads)
    for (std::int64_t start = 0; start < a.n; start += part) {
        project_part(a, start, std::min(start + part, a.n));
    }
}

template void admissible<float>(const Tensors<float>&) noexcept;
template void admissible<double>(const Tensors<double>&) noexcept;

} // namespace neuroscale::kernels::cpu
