// The public structs of DLPack 1.3 (https://dmlc.github.io/dlpack/latest/c_api.html), as far as we read them.
#pragma once

#include <cstdint>

extern "C" {

struct DLPackVersion {
    std::uint32_t major;
    std::uint32_t minor;
};

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

// What a capsule "dltensor" holds, the same since DLPack 0.2.
struct DLManagedTensor {
    DLTensor dl_tensor;
    void* manager_ctx;
    void (*deleter)(DLManagedTensor*);
};

// C functions of a type of tensors, in the capsule "dlpack_exchange_api" that is its attribute
// `__dlpack_c_exchange_api__`. They last as long as the process; each returns 0, or -1 with a Python exception set.
struct DLPackExchangeAPIHeader {
    DLPackVersion version;
    DLPackExchangeAPIHeader* prev_api; // of an older version, or nullptr
};

struct DLPackExchangeAPI {
    DLPackExchangeAPIHeader header;
    void (*managed_tensor_allocator)();              // not called here
    void (*managed_tensor_from_py_object_no_sync)(); // not called here
    void (*managed_tensor_to_py_object_no_sync)();   // not called here
    // Fills a view that owns nothing; nullptr where the type has none.
    int (*dltensor_from_py_object_no_sync)(void* py_object, DLTensor* out);
    // The stream on which the library queues its work on a device.
    int (*current_work_stream)(std::int32_t device_type, std::int32_t device_id, void** out_current_stream);
};
}

namespace neuroscale::bindings {

constexpr std::uint32_t dl_major = 1; // other minor versions have the same structs
constexpr std::int32_t dl_cpu = 1;
constexpr std::int32_t dl_cuda = 2;
constexpr std::uint8_t dl_int = 0;
constexpr std::uint8_t dl_uint = 1;
constexpr std::uint8_t dl_float = 2;

} // namespace neuroscale::bindings
