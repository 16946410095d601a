// A checked look at a NumPy array or a DLPack tensor: no copy, no conversion.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

namespace neuroscale::bindings {

enum class Dtype { float32, float64 };
enum class Device { cpu, cuda };

// Keeps its source alive for as long as it lives.
struct ArrayView {
    std::string name;
    void* data = nullptr;
    Dtype dtype = Dtype::float64;
    Device device = Device::cpu;
    int device_index = 0;
    std::vector<std::int64_t> shape;
    pybind11::object owner;
};

enum class Access { read, write };

// Raises TypeError (kind, dtype) or ValueError (device, strides, read-only) with what was got and what was expected.
ArrayView view_of(const pybind11::object& array, const std::string& name, Access access);

// e.g. "float32 (2, 3, 8, 8) on cpu"
std::string describe(const ArrayView& view);
std::string describe(const std::vector<std::int64_t>& shape);

} // namespace neuroscale::bindings
