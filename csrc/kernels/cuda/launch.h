// How the CUDA kernels are launched: grid-stride loops over a count of items, no allocation, no synchronisation.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace neuroscale::kernels::cuda {

constexpr std::int64_t threads_per_block = 256;
constexpr std::int64_t most_blocks = 1 << 20;

inline unsigned blocks_for(std::int64_t items) {
    const std::int64_t needed = (items + threads_per_block - 1) / threads_per_block;
    return static_cast<unsigned>(needed < most_blocks ? needed : most_blocks);
}

__device__ inline std::int64_t first_item() {
    return std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
}

__device__ inline std::int64_t item_step() {
    return std::int64_t(gridDim.x) * blockDim.x;
}

// Queues kernel(arguments...) for `items` items; nothing at all for none.
template <typename... Parameters, typename... Arguments>
int launch(std::int64_t items, void* stream, void (*kernel)(Parameters...), Arguments... arguments) noexcept {
    if (items <= 0) {
        return 0;
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(blocks_for(items));
    config.blockDim = dim3(static_cast<unsigned>(threads_per_block));
    config.stream = static_cast<cudaStream_t>(stream);
    return static_cast<int>(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

} // namespace neuroscale::kernels::cuda
