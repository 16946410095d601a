// How the CUDA kernels are launched: grid-stride loops over a count of items, no allocation, no synchronisation.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

// A block's dynamic shared memory, for any type.
#if !defined(NEUROSCALE_SHARED)
#define NEUROSCALE_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

namespace neuroscale::kernels::cuda {

constexpr std::int64_t threads_per_block = 256;
constexpr std::int64_t most_blocks = 1 << 20;

__device__ inline std::int64_t first_item() {
    return std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
}

__device__ inline std::int64_t item_step() {
    return std::int64_t(gridDim.x) * blockDim.x;
}

// Queues kernel(arguments...) on that many blocks with that much shared memory; nothing at all on none.
template <std::int64_t threads = threads_per_block, typename... Parameters, typename... Arguments>
int launch_blocks(std::int64_t blocks, std::int64_t shared_bytes, void* stream, void (*kernel)(Parameters...),
                  Arguments... arguments) noexcept {
    if (blocks <= 0) {
        return 0;
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(blocks < most_blocks ? blocks : most_blocks));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = static_cast<std::size_t>(shared_bytes);
    config.stream = static_cast<cudaStream_t>(stream);
    return static_cast<int>(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

// Queues kernel(arguments...) for `items` items.
template <typename... Parameters, typename... Arguments>
int launch(std::int64_t items, void* stream, void (*kernel)(Parameters...), Arguments... arguments) noexcept {
    return launch_blocks((items + threads_per_block - 1) / threads_per_block, 0, stream, kernel, arguments...);
}

} // namespace neuroscale::kernels::cuda
