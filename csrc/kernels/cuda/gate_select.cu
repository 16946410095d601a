// One launch where there is one part, else two; no host in between. A block has a part, a warp 256 points of it in a
// row and a thread eight of these, 32 apart: all their loads are on their way at once, and the bits of a ballot are in
// order.
//
// count_refused: reads sizeof(T) + 1 bytes per point, writes sizeof(T) and each new reason. The curve and its slopes
//     are in shared memory (3 sizeof(T) per knot, at most 12 KB). 72 registers (float 51): 768 threads
//     per SM with 72 bytes each on their way, about 40 KB keep the memory busy.
// list_refused: adds up the counts of the parts before its own (from the L2 cache; what 2 000 parts have is less than a
//     launch costs), then reads 1 byte per point of parts that have refused any and writes 8 per refused point, with a
//     barrier per 2048 points. 56 registers.
// select_alone: both in one block, for few points. 72 registers.
#include "neuroscale/kernels/gate_select.h"

#include "launch.h"

#include <cmath>

namespace neuroscale::kernels::cuda {

constexpr int warp = 32;
constexpr int warps = static_cast<int>(threads_per_block) / warp;
constexpr int rows = 8;                                 // points of a thread
constexpr std::int64_t tile = threads_per_block * rows; // points of a block at a time
constexpr std::int64_t most_curve_bytes = 12 * 1024;    // longer curves stay where they are
constexpr std::int64_t count_bytes = 2 * warps * sizeof(std::int64_t);
constexpr unsigned all_lanes = 0xffffffffU;

template <typename T>
struct Curve {
    const T* knots;
    const T* levels;
    const T* slopes; // before each knot but the first; nullptr: not made
    std::int64_t count;

    // Into shared memory, if that has been asked for; before a barrier.
    __device__ Curve(const Selection<T>& s, unsigned char* shared, bool copied)
        : knots(s.knots), levels(s.levels), slopes(nullptr), count(s.curve) {
        if (!copied) {
            return;
        }
        T* copy = reinterpret_cast<T*>(shared);
        for (std::int64_t j = threadIdx.x; j < count; j += threads_per_block) {
            copy[j] = knots[j];
            copy[count + j] = levels[j];
            copy[2 * count + j] = j > 0 ? slope(j) : T(0);
        }
        knots = copy;
        levels = copy + count;
        slopes = copy + 2 * count;
    }

    __device__ T slope(std::int64_t j) const { return (levels[j] - levels[j - 1]) / (knots[j] - knots[j - 1]); }

    __device__ T at(T score) const {
        if (score <= knots[0]) {
            return levels[0];
        }
        std::int64_t low = 1;
        for (std::int64_t high = count; low < high;) {
            const std::int64_t middle = low + (high - low) / 2;
            if (score < knots[middle]) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        if (low == count) {
            return levels[count - 1];
        }
        return (slopes == nullptr ? slope(low) : slopes[low]) * (score - knots[low - 1]) + levels[low - 1];
    }
};

// Where part p begins.
template <typename T>
__device__ std::int64_t start_of(const Selection<T>& s, std::int64_t p) {
    return s.n / s.parts_count * p + s.n % s.parts_count * p / s.parts_count;
}

// The first point of this thread, if its block has those from `start` on.
__device__ inline std::int64_t first_point(std::int64_t start) {
    const auto t = static_cast<int>(threadIdx.x);
    return start + t / warp * (warp * rows) + t % warp;
}

// Error and reason of point i; whether it is refused.
template <typename T>
__device__ bool judge(const Selection<T>& s, const Curve<T>& curve, std::int64_t i, T score, std::uint8_t before) {
    const bool finite = score - score == T(0);
    s.error[i] = finite && curve.count > 0 ? curve.at(score) : static_cast<T>(INFINITY);
    const std::uint8_t mine = !finite ? s.not_finite : score <= s.threshold ? std::uint8_t{0} : s.uncertain;
    if (before == 0 && mine != 0) {
        s.reason[i] = mine;
    }
    return before != 0 || mine != 0;
}

// Which of the warp's points before `last` are refused, a bit each, a word per row; how many.
template <bool judged, typename T>
__device__ int refused_of(const Selection<T>& s, const Curve<T>& curve, std::int64_t first, std::int64_t last,
                          unsigned (&bits)[rows]) {
    T score[rows];
    std::uint8_t reason[rows];
#pragma unroll
    for (int r = 0; r < rows; ++r) {
        const std::int64_t i = first + r * warp;
        score[r] = !judged && i < last ? s.score[i] : T(0);
        reason[r] = i < last ? s.reason[i] : std::uint8_t{0};
    }
    int count = 0;
#pragma unroll
    for (int r = 0; r < rows; ++r) {
        const std::int64_t i = first + r * warp;
        const bool refused = judged ? reason[r] != 0 : i < last && judge(s, curve, i, score[r], reason[r]);
        bits[r] = __ballot_sync(all_lanes, refused);
        count += __popc(bits[r]);
    }
    return count;
}

// The sum of `mine` over the block, for all its threads.
__device__ inline std::int64_t block_sum(std::int64_t mine, std::int64_t* shared) {
    for (int half = warp / 2; half > 0; half /= 2) {
        mine += __shfl_down_sync(all_lanes, mine, half, warp);
    }
    __syncthreads(); // nobody still reads what was there
    if (threadIdx.x % warp == 0) {
        shared[threadIdx.x / warp] = mine;
    }
    __syncthreads();
    std::int64_t sum = 0;
    for (int w = 0; w < warps; ++w) {
        sum += shared[w];
    }
    return sum;
}

template <typename T>
__global__ void count_refused(Selection<T> s, bool copied) {
    NEUROSCALE_SHARED(bytes);
    auto* shared = reinterpret_cast<std::int64_t*>(bytes);
    const Curve<T> curve(s, bytes + count_bytes, copied);
    __syncthreads();
    for (std::int64_t p = blockIdx.x; p < s.parts_count; p += gridDim.x) {
        const std::int64_t last = start_of(s, p + 1);
        std::int64_t count = 0;
        for (std::int64_t start = start_of(s, p); start < last; start += tile) {
            unsigned bits[rows];
            count += refused_of<false>(s, curve, first_point(start), last, bits);
        }
        count = block_sum(threadIdx.x % warp == 0 ? count : 0, shared);
        if (threadIdx.x == 0) {
            s.parts[p] = count;
        }
    }
}

// Lists the refused points from `start` to `last` behind the `before` others; how many there are then.
template <bool judged, typename T>
__device__ std::int64_t list_part(const Selection<T>& s, const Curve<T>& curve, std::int64_t start, std::int64_t last,
                                  std::int64_t before, std::int64_t* shared) {
    const auto lane = static_cast<int>(threadIdx.x) % warp;
    const auto mine = static_cast<int>(threadIdx.x) / warp;
    for (int turn = 0; start < last; start += tile, turn ^= 1) {
        unsigned bits[rows];
        const std::int64_t first = first_point(start);
        const int count = refused_of<judged>(s, curve, first, last, bits);
        std::int64_t* counts = shared + turn * warps; // two in turn: one barrier is enough
        if (lane == 0) {
            counts[mine] = count;
        }
        __syncthreads();
        std::int64_t at = before;
        for (int w = 0; w < warps; ++w) {
            at += w < mine ? counts[w] : 0;
            before += counts[w];
        }
#pragma unroll
        for (int r = 0; r < rows; ++r) {
            if ((bits[r] >> lane & 1U) != 0) {
                s.refused[at + __popc(bits[r] & ((1U << lane) - 1U))] = first + r * warp;
            }
            at += __popc(bits[r]);
        }
    }
    return before;
}

template <typename T>
__global__ void list_refused(Selection<T> s) {
    NEUROSCALE_SHARED(bytes);
    auto* shared = reinterpret_cast<std::int64_t*>(bytes);
    const Curve<T> curve(s, nullptr, false);
    for (std::int64_t p = blockIdx.x; p < s.parts_count; p += gridDim.x) {
        std::int64_t before = 0;
        for (std::int64_t q = threadIdx.x; q < p; q += threads_per_block) {
            before += s.parts[q];
        }
        before = block_sum(before, shared);
        const std::int64_t count = s.parts[p];
        __syncthreads(); // all have read the sum
        if (count > 0) {
            list_part<true>(s, curve, start_of(s, p), start_of(s, p + 1), before, shared);
        }
        if (p == s.parts_count - 1 && threadIdx.x == 0) {
            s.parts[s.parts_count] = before + count;
        }
    }
}

template <typename T>
__global__ void select_alone(Selection<T> s, bool copied) {
    NEUROSCALE_SHARED(bytes);
    const Curve<T> curve(s, bytes + count_bytes, copied);
    __syncthreads();
    const std::int64_t count = list_part<false>(s, curve, 0, s.n, 0, reinterpret_cast<std::int64_t*>(bytes));
    if (threadIdx.x == 0) {
        s.parts[1] = count;
    }
}

template <typename T>
int gate_select(const Selection<T>& s, void* stream) noexcept {
    const std::int64_t curve_bytes = 3 * s.curve * std::int64_t(sizeof(T));
    const bool copied = curve_bytes <= most_curve_bytes;
    const std::int64_t shared = count_bytes + (copied ? curve_bytes : 0);
    if (s.parts_count == 1) {
        return launch_blocks(1, shared, stream, select_alone<T>, s, copied);
    }
    const int error = launch_blocks(s.parts_count, shared, stream, count_refused<T>, s, copied);
    return error != 0 ? error : launch_blocks(s.parts_count, count_bytes, stream, list_refused<T>, s);
}

template int gate_select<float>(const Selection<float>&, void*) noexcept;
template int gate_select<double>(const Selection<double>&, void*) noexcept;

} // namespace neuroscale::kernels::cuda
