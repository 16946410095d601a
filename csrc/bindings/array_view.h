// A checked look at a NumPy array or a DLPack tensor: no copy, no conversion.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

namespace neuroscale::bindings {

enum class Dtype { float32, float64, int64, uint8 };
enum class Kind { floating, int64, uint8 };
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

// Raises TypeError (kind, dtype) or ValueError (device, strides, alignment, read-only) with what was got and what was
// expected.
ArrayView view_of(const pybind11::object& array, const std::string& name, Access access, Kind kind = Kind::floating);

// Raises ValueError unless `view` has this shape, and dtype and place of `like`.
void expect(const ArrayView& view, const std::vector<std::int64_t>& shape, Dtype dtype, const ArrayView& like);

// Raises ValueError if memory that is written overlaps any other memory of the call.
void refuse_overlap(const std::vector<const ArrayView*>& written, const std::vector<const ArrayView*>& others);

// e.g. "float32 (2, 3, 8, 8) on cpu"
std::string describe(const ArrayView& view);
std::string describe(const std::vector<std::int64_t>& shape);

} // namespace neuroscale::bindings
