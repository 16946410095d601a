// One thread per coarse cell and one launch per level: the input is read once, each level is read by the next.
#include "neuroscale/kernels/coarsen_pyramid.h"

#include <cuda_runtime.h>

namespace neuroscale::kernels::cuda {

template <typename T>
__device__ T sum_of_four(const T* upper, const T* lower) {
    return (upper[0] + upper[1]) + (lower[0] + lower[1]);
}

template <typename T>
__global__ void halve(const T* fine, T* coarse, std::int64_t cells, std::int64_t height, std::int64_t width,
                      bool volume) {
    const std::int64_t step = std::int64_t(gridDim.x) * blockDim.x;
    for (std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < cells; i += step) {
        const std::int64_t x = i % (width / 2);
        const std::int64_t y = i / (width / 2) % (height / 2);
        const std::int64_t plane = i / (width / 2) / (height / 2) * (volume ? 2 : 1);
        const T* upper = fine + (plane * height + 2 * y) * width + 2 * x;
        if (volume) {
            const T* back = upper + height * width;
            coarse[i] = (sum_of_four(upper, upper + width) + sum_of_four(back, back + width)) * T(0.125);
        } else {
            coarse[i] = sum_of_four(upper, upper + width) * T(0.25);
        }
    }
}

template <typename T>
int coarsen_pyramid(const T* fine, T* const* coarse, const PyramidShape& shape, void* stream) noexcept {
    constexpr std::int64_t threads = 256;
    constexpr std::int64_t max_blocks = 1 << 20;
    const T* source = fine;
    std::int64_t cells = shape.fields * shape.depth * shape.height * shape.width;
    for (std::int64_t level = 0; level < shape.levels && cells > 0; ++level) {
        cells /= shape.volume ? 8 : 4;
        const std::int64_t needed = (cells + threads - 1) / threads;
        const dim3 grid(static_cast<unsigned>(needed < max_blocks ? needed : max_blocks));
        halve<<<grid, dim3(threads), 0, static_cast<cudaStream_t>(stream)>>>(
            source, coarse[level], cells, shape.height >> level, shape.width >> level, shape.volume);
        if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) {
            return static_cast<int>(error);
        }
        source = coarse[level];
    }
    return 0;
}

template int coarsen_pyramid<float>(const float*, float* const*, const PyramidShape&, void*) noexcept;
template int coarsen_pyramid<double>(const double*, double* const*, const PyramidShape&, void*) noexcept;

int device_count() noexcept {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

const char* error_text(int error) noexcept {
    return cudaGetErrorString(static_cast<cudaError_t>(error));
}

} // namespace neuroscale::kernels::cuda
