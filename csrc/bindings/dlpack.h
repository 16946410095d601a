// The public structs of DLPack 0.8 (https://dmlc.github.io/dlpack/latest/c_api.html), as far as we read them.
#pragma once

#include <cstdint>

extern "C" {

struct DLDevice {
    std::int32_t device_type;
    std::int32_t device_id;
};

struct DLDataType {
    std::uint8_t code;
    std::uint8_t bits;
    std::uint16_t lanes;
};

struct DLTensor {
    void* data;
    DLDevice device;
    std::int32_t ndim;
    DLDataType dtype;
    std::int64_t* shape;
    std::int64_t* strides;
    std::uint64_t byte_offset;
};

struct DLManagedTensor {
    DLTensor dl_tensor;
    void* manager_ctx;
    void (*deleter)(DLManagedTensor*);
};
}

namespace neuroscale::bindings {

constexpr std::int32_t dl_cpu = 1;
constexpr std::int32_t dl_cuda = 2;
constexpr std::uint8_t dl_int = 0;
constexpr std::uint8_t dl_uint = 1;
constexpr std::uint8_t dl_float = 2;

} // namespace neuroscale::bindings
