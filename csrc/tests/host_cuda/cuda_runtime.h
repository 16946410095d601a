// CUDA's language and runtime, as far as csrc/kernels/cuda uses them, on the host: the same sources, compiled by a C++
// compiler, run thread by thread on a machine without a GPU. Every thread of a block is a fiber with a stack of its
// own; blocks run one after the other. See host_cuda.cpp for what is checked beside the results.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define NEUROSCALE_SHARED(name) unsigned char* name = host_cuda::shared_memory()

struct dim3 {
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
    unsigned x;
    unsigned y;
    unsigned z;
};

// CUDA aligns them by their size, and so does this: a load from elsewhere is found by UndefinedBehaviorSanitizer.
struct alignas(8) float2 {
    float x;
    float y;
};

struct alignas(16) double2 {
    double x;
    double y;
};

inline dim3 gridDim;
inline dim3 blockDim;
inline dim3 blockIdx;
inline dim3 threadIdx;
constexpr int warpSize = 32;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
using cudaStream_t = void*;

struct cudaLaunchConfig_t {
    dim3 gridDim;
    dim3 blockDim;
    std::size_t dynamicSmemBytes;
    cudaStream_t stream;
};

inline cudaError_t cudaGetDeviceCount(int* count) {
    *count = 1;
    return cudaSuccess;
}

inline const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaSuccess ? "no error" : "refused by the host's stand-in";
}

namespace host_cuda {

// Runs kernel() once per thread of the grid.
cudaError_t launch(const cudaLaunchConfig_t& config, const std::function<void()>& kernel);

unsigned char* shared_memory();

// Returns when all threads of the block that have not ended are here; the number of them with a true `value`.
int wait_for_block(int line, bool value);

// Returns when all threads of the warp that `mask` names are here.
void wait_for_warp(unsigned mask, int line);

// 8 bytes of lane `lane` of this warp, which it gave in the same call.
std::uint64_t exchange(unsigned mask, std::uint64_t mine, int lane, int line);

// The bits of all lanes in `mask`.
unsigned ballot(unsigned mask, bool mine, int line);

template <typename T>
T shuffle(unsigned mask, T value, int lane, int line) {
    static_assert(sizeof(T) <= sizeof(std::uint64_t));
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = exchange(mask, bits, lane, line);
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

inline int lane_id() {
    return static_cast<int>(threadIdx.x) % warpSize;
}

// The lane `offset` further within this lane's group of `width`, itself where that is outside.
inline int down(int offset, int width) {
    return lane_id() % width + offset < width ? lane_id() + offset : lane_id();
}

} // namespace host_cuda

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
    const std::tuple<Parameters...> given(arguments...);
    return host_cuda::launch(*config, [&] { std::apply(kernel, given); });
}

#define __syncthreads() static_cast<void>(host_cuda::wait_for_block(__LINE__, false))
#define __syncthreads_count(value) host_cuda::wait_for_block(__LINE__, (value) != 0)
#define __syncwarp(mask) host_cuda::wait_for_warp(mask, __LINE__)
#define __ballot_sync(mask, value) host_cuda::ballot(mask, (value) != 0, __LINE__)
#define __shfl_sync(mask, value, source, width)                                                                        \
    host_cuda::shuffle(mask, value, host_cuda::lane_id() / (width) * (width) + (source) % (width), __LINE__)
#define __shfl_xor_sync(mask, value, bits, width)                                                                      \
    host_cuda::shuffle(mask, value, host_cuda::lane_id() ^ (bits), __LINE__)
#define __shfl_down_sync(mask, value, offset, width)                                                                   \
    host_cuda::shuffle(mask, value, host_cuda::down(offset, width), __LINE__)

inline int __popc(unsigned bits) {
    return __builtin_popcount(bits);
}

template <typename T>
T __ldg(const T* at) {
    return *at;
}
