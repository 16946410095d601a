// Two launches: the check of all tensors, then the projection of the few that fail. The steps are those of
// small_project.h.
//
// check: one thread per tensor. A warp reads its 32 tensors and their bounds in the order of the memory, up to 18 loads
//     of a thread on their way, and hands them out through shared memory (37 KB a block where d = 6): once 3 d^2
//     sizeof(T) bytes per wanted tensor, 1 byte written, and d^2 sizeof(T) where it is made symmetric. 128 registers
//     for d = 6, 77 for 3, 54 for 2, none spilt: 16, 24 and 36 warps per SM, with 74, 55 and 37 KB of doubles on their
//     way.
// project: a block looks through marks (1 byte per tensor) and collects what failed, from 256 tensors here and there:
//     failures that lie together go to many blocks, and all lanes of a warp project. One thread per failure reads
//     the tensor and its bounds again. 255 registers, 144 bytes of stack and 142 bytes spilt for d = 6; 122 and 64
//     registers and no stack for 3 and 2. Where nothing failed it costs its launch and n bytes.
#include "neuroscale/kernels/admissible.h"

#include "launch.h"
#include "neuroscale/kernels/small_project.h"

namespace neuroscale::kernels::cuda {

constexpr int warp = 32;
constexpr int warps = static_cast<int>(threads_per_block) / warp;
constexpr std::int64_t check_threads = 128; // 32 tensors for each warp fit into 48 KB
constexpr int rows = 4;                     // marks that a thread of project reads at once
constexpr std::uint8_t to_be_projected = 4; // in `changed`, between the two launches
constexpr unsigned all_lanes = 0xffffffffU;

// Numbers from one tensor to the next in shared memory: odd, so that no two lanes meet in a bank.
template <int d>
constexpr int padded = d * d | 1;

// The warp's 32 tensors between the array at `block` (that of lane 0, rows `stride` apart) and shared memory, in the
// order of the array; only those that `mask` names.
template <int d, typename T>
__device__ void copy_in(const T* block, std::int64_t stride, unsigned mask, T* memory) {
    constexpr int batch = d == 6 ? 18 : d * d; // loads of a thread on their way
    const auto lane = static_cast<int>(threadIdx.x) % warp;
    __syncwarp(all_lanes); // nobody still reads what was there
    for (int start = 0; start < d * d; start += batch) {
        T value[batch];
#pragma unroll
        for (int q = 0; q < batch; ++q) {
            const int at = (start + q) * warp + lane;
            value[q] = (mask >> at / (d * d) & 1U) != 0 ? block[at / d * stride + at % d] : T(0);
        }
#pragma unroll
        for (int q = 0; q < batch; ++q) {
            const int at = (start + q) * warp + lane;
            memory[at / (d * d) * padded<d> + at % (d * d)] = value[q];
        }
    }
    __syncwarp(all_lanes);
}

template <int d, typename T>
__device__ void copy_out(T* block, std::int64_t stride, unsigned mask, const T* memory) {
    __syncwarp(all_lanes);
#pragma unroll
    for (int q = 0; q < d * d; ++q) {
        const int at = q * warp + static_cast<int>(threadIdx.x) % warp;
        if ((mask >> at / (d * d) & 1U) != 0) {
            block[at / d * stride + at % d] = memory[at / (d * d) * padded<d> + at % (d * d)];
        }
    }
}

// What is found of one tensor.
template <int d>
struct Finding {
    small_tensor::Matrix<d> s; // the symmetric part
    bool symmetric = true;
    bool finite = false;
    bool inside = false;
};

// Whether sign * (s - bound) + slack is definite; the bound is in shared memory.
template <int d, typename T>
__device__ bool beyond(const small_tensor::Matrix<d>& s, const T* memory, double sign, double slack, double& room) {
    small_tensor::Matrix<d> bound;
    for (int row = 0; row < d; ++row) {
        small_tensor::load_row(memory, row, bound);
    }
    small_tensor::Numbers<1> slacks = {room};
    if (sign < 0.0) { // the trace of the upper bound
        small_tensor::trace(bound, slacks);
        slacks[0] *= slack;
        room = slacks[0];
    }
    small_tensor::Flags<1> inside = {1};
    small_tensor::and_beyond(s, bound, sign, slacks, inside);
    return inside[0] != 0;
}

// Whether the tensor of this lane, if it is wanted, is admissible; by the whole warp. Lanes without one go along with
// zeros: branches would cost registers.
template <int d, typename T>
__device__ Finding<d> look(const Tensors<T>& a, std::int64_t first, bool wanted, T* memory) {
    const T* mine = memory + static_cast<int>(threadIdx.x) % warp * padded<d>;
    Finding<d> found;
    copy_in<d>(a.tensors + first * d * a.stride + a.first, a.stride, __ballot_sync(all_lanes, wanted), memory);
    small_tensor::Group<d, 1> group;
    for (int row = 0; row < d; ++row) {
        small_tensor::load_row(mine, d, row, group);
    }
    found.s = group.t;
    found.symmetric = group.symmetric[0] != 0;
    small_tensor::Flags<1> finite;
    small_tensor::finite(found.s, finite);
    found.finite = finite[0] != 0;
    found.inside = wanted && found.finite;
    if (a.lower == nullptr) {
        small_tensor::Matrix<d> copy = found.s;
        const small_tensor::Numbers<1> zero = {};
        small_tensor::Flags<1> inside = {1};
        small_tensor::eliminate(copy, zero, inside);
        found.inside = inside[0] != 0 && found.inside;
        return found;
    }
    double room = 0.0;
    copy_in<d>(a.upper + first * d * d, d, __ballot_sync(all_lanes, found.inside), memory);
    found.inside = beyond(found.s, mine, -1.0, a.slack, room) && found.inside;
    copy_in<d>(a.lower + first * d * d, d, __ballot_sync(all_lanes, found.inside), memory);
    found.inside = beyond(found.s, mine, 1.0, a.slack, room) && found.inside;
    return found;
}

// Tensors begin ... begin + 128 gridDim.x - 1, one per thread: a loop here would keep the addresses of all its loads.
template <int d, typename T>
__global__ void __launch_bounds__(check_threads, d == 6 ? 4 : 1) check(Tensors<T> a, std::int64_t begin) {
    NEUROSCALE_SHARED(bytes);
    const auto lane = static_cast<int>(threadIdx.x) % warp;
    T* memory = reinterpret_cast<T*>(bytes) + static_cast<int>(threadIdx.x) / warp * warp * padded<d>;
    const std::int64_t i = begin + first_item();
    const std::int64_t first = i - lane;
    if (first >= a.n) {
        return;
    }
    const bool wanted = i < a.n && (a.wanted == nullptr || a.wanted[i] != 0);
    const Finding<d> found = look<d>(a, first, wanted, memory);
    const bool rewritten = found.inside && !found.symmetric;
    const unsigned mask = __ballot_sync(all_lanes, rewritten);
    if (rewritten) {
#pragma unroll
        for (int e = 0; e < d * d; ++e) {
            const int r = e / d < e % d ? e / d : e % d; // of the upper triangle
            memory[lane * padded<d> + e] = static_cast<T>(found.s.m[r][e / d + e % d - r][0]);
        }
    }
    if (mask != 0) {
        copy_out<d>(a.tensors + first * d * a.stride + a.first, a.stride, mask, memory);
    }
    if (i < a.n) {
        const std::uint8_t good = found.inside ? (rewritten ? 1 : 0) : to_be_projected;
        a.changed[i] = !wanted ? 0 : found.finite ? good : 3;
    }
}

// Appends the tensors that are to be projected to the `count` of the list; from `first` on, `rows` windows of a block.
// The first barrier also waits for those who still read from the list.
template <typename T>
__device__ int collect(const Tensors<T>& a, std::int64_t first, int count, std::int64_t* list, int* counts) {
    const auto lane = static_cast<int>(threadIdx.x) % warp;
    const auto mine = static_cast<int>(threadIdx.x) / warp;
    unsigned bits[rows];
    std::uint8_t mark[rows];
#pragma unroll
    for (int r = 0; r < rows; ++r) {
        const std::int64_t i = first + r * item_step() + threadIdx.x;
        mark[r] = i < a.n ? a.changed[i] : std::uint8_t{0};
    }
    int found = 0;
#pragma unroll
    for (int r = 0; r < rows; ++r) {
        bits[r] = __ballot_sync(all_lanes, mark[r] == to_be_projected);
        found += __popc(bits[r]);
    }
    if (lane == 0) {
        counts[mine] = found;
    }
    __syncthreads();
    int at = count;
    for (int w = 0; w < warps; ++w) {
        at += w < mine ? counts[w] : 0;
        count += counts[w];
    }
#pragma unroll
    for (int r = 0; r < rows; ++r) {
        if ((bits[r] >> lane & 1U) != 0) {
            list[at + __popc(bits[r] & ((1U << lane) - 1U))] = first + r * item_step() + threadIdx.x;
        }
        at += __popc(bits[r]);
    }
    __syncthreads();
    return count;
}

template <int d, typename T>
__global__ void project(Tensors<T> a) {
    NEUROSCALE_SHARED(bytes);
    auto* list = reinterpret_cast<std::int64_t*>(bytes);
    auto* counts = reinterpret_cast<int*>(list + (rows + 1) * threads_per_block);
    constexpr auto all = static_cast<int>(threads_per_block);
    int count = 0;
    for (std::int64_t first = blockIdx.x * threads_per_block; first < a.n || count > 0; first += rows * item_step()) {
        count = collect(a, first, count, list, counts);
        const bool last = first + rows * item_step() >= a.n;
        while (count >= all || (last && count > 0)) {
            const int taken = count < all ? count : all;
            count -= taken;
            if (static_cast<int>(threadIdx.x) < taken) {
                small_tensor::project<d>(a, list[count + static_cast<int>(threadIdx.x)]);
            }
        }
    }
}

template <int d, typename T>
int run(const Tensors<T>& a, void* stream) noexcept {
    constexpr std::int64_t memory = check_threads * padded<d> * std::int64_t(sizeof(T));
    constexpr std::int64_t at_once = check_threads * most_blocks;
    for (std::int64_t begin = 0; begin < a.n; begin += at_once) {
        const std::int64_t blocks = (a.n - begin + check_threads - 1) / check_threads;
        if (const int error = launch_blocks<check_threads>(blocks, memory, stream, check<d, T>, a, begin); error != 0) {
            return error;
        }
    }
    constexpr std::int64_t list = (rows + 1) * threads_per_block * std::int64_t(sizeof(std::int64_t));
    constexpr std::int64_t most = 132 * (d == 6 ? 1 : d == 3 ? 2 : 3); // as many as an H100 holds at once
    const std::int64_t blocks = (a.n + threads_per_block - 1) / threads_per_block;
    return launch_blocks(blocks < most ? blocks : most, list + warps * std::int64_t(sizeof(int)), stream, project<d, T>,
                         a);
}

template <typename T>
int admissible(const Tensors<T>& tensors, void* stream) noexcept {
    switch (tensors.d) {
    case 2:
        return run<2>(tensors, stream);
    case 3:
        return run<3>(tensors, stream);
    default:
        return run<6>(tensors, stream);
    }
}

template int admissible<float>(const Tensors<float>&, void*) noexcept;
template int admissible<double>(const Tensors<double>&, void*) noexcept;

} // namespace neuroscale::kernels::cuda
