// Plain loops, to be checked by eye; every other backend is tested against this one.
#include "neuroscale/kernels/gate_select.h"

#include <cmath>
#include <limits>

namespace neuroscale::kernels::reference {

template <typename T>
static T curve_at(const Selection<T>& s, T score) {
    if (s.curve == 0 || !std::isfinite(score)) {
        return std::numeric_limits<T>::infinity();
    }
    if (score <= s.knots[0]) {
        return s.levels[0];
    }
    for (std::int64_t j = 1; j < s.curve; ++j) {
        if (score < s.knots[j]) {
            const T slope = (s.levels[j] - s.levels[j - 1]) / (s.knots[j] - s.knots[j - 1]);
            return slope * (score - s.knots[j - 1]) + s.levels[j - 1];
        }
    }
    return s.levels[s.curve - 1];
}

template <typename T>
void gate_select(const Selection<T>& s) noexcept {
    std::int64_t count = 0;
    for (std::int64_t i = 0; i < s.n; ++i) {
        s.error[i] = curve_at(s, s.score[i]);
        if (s.reason[i] == 0 && !std::isfinite(s.score[i])) {
            s.reason[i] = s.not_finite;
        } else if (s.reason[i] == 0 && !(s.score[i] <= s.threshold)) {
            s.reason[i] = s.uncertain;
        }
        if (s.reason[i] != 0) {
            s.refused[count++] = i;
        }
    }
    s.parts[s.parts_count] = count;
}

template void gate_select<float>(const Selection<float>&) noexcept;
template void gate_select<double>(const Selection<double>&) noexcept;

} // namespace neuroscale::kernels::reference
