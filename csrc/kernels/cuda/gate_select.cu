// Three launches and no host in between: reasons and counts per part, offsets of the parts, compaction per part.
#include "neuroscale/kernels/gate_select.h"

#include "launch.h"

#include <cmath>

namespace neuroscale::kernels::cuda {

template <typename T>
__device__ T curve_at(const Selection<T>& s, T score) {
    if (score <= s.knots[0]) {
        return s.levels[0];
    }
    std::int64_t low = 1;
    for (std::int64_t high = s.curve; low < high;) {
        const std::int64_t middle = low + (high - low) / 2;
        if (score < s.knots[middle]) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    if (low == s.curve) {
        return s.levels[s.curve - 1];
    }
    const T slope = (s.levels[low] - s.levels[low - 1]) / (s.knots[low] - s.knots[low - 1]);
    return slope * (score - s.knots[low - 1]) + s.levels[low - 1];
}

template <typename T>
__device__ std::int64_t start_of(const Selection<T>& s, std::int64_t p) {
    return s.n / s.parts_count * p + s.n % s.parts_count * p / s.parts_count;
}

template <typename T>
__global__ void compare(Selection<T> s) {
    for (std::int64_t i = first_item(); i < s.n; i += item_step()) {
        const T score = s.score[i];
        const bool finite = score - score == T(0);
        s.error[i] = s.curve > 0 && finite ? curve_at(s, score) : static_cast<T>(INFINITY);
        if (s.reason[i] == 0) {
            s.reason[i] = !finite ? s.not_finite : score <= s.threshold ? std::uint8_t{0} : s.uncertain;
        }
    }
}

template <typename T>
__global__ void count(Selection<T> s) {
    for (std::int64_t p = first_item(); p < s.parts_count; p += item_step()) {
        std::int64_t refused = 0;
        for (std::int64_t i = start_of(s, p); i < start_of(s, p + 1); ++i) {
            refused += s.reason[i] != 0 ? 1 : 0;
        }
        s.parts[p] = refused;
    }
}

template <typename T>
__global__ void offsets(Selection<T> s) {
    std::int64_t total = 0;
    for (std::int64_t p = 0; p <= s.parts_count && first_item() == 0; ++p) {
        const std::int64_t mine = p < s.parts_count ? s.parts[p] : 0;
        s.parts[p] = total;
        total += mine;
    }
}

template <typename T>
__global__ void compact(Selection<T> s) {
    for (std::int64_t p = first_item(); p < s.parts_count; p += item_step()) {
        std::int64_t* out = s.refused + s.parts[p];
        for (std::int64_t i = start_of(s, p); i < start_of(s, p + 1); ++i) {
            if (s.reason[i] != 0) {
                *out++ = i;
            }
        }
    }
}

template <typename T>
int gate_select(const Selection<T>& s, void* stream) noexcept {
    int error = launch(s.n, stream, compare<T>, s);
    error = error != 0 ? error : launch(s.parts_count, stream, count<T>, s);
    error = error != 0 ? error : launch(1, stream, offsets<T>, s);
    return error != 0 ? error : launch(s.parts_count, stream, compact<T>, s);
}

template int gate_select<float>(const Selection<float>&, void*) noexcept;
template int gate_select<double>(const Selection<double>&, void*) noexcept;

} // namespace neuroscale::kernels::cuda
