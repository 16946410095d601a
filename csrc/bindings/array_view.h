// A checked look at a NumPy array or a DLPack tensor: no copy, no conversion.
#pragma once

#include "shape.h"

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

namespace neuroscale::bindings {

enum class Dtype { float32, float64, int64, uint8 };
enum class Kind { floating, int64, uint8 };
enum class Device { cpu, cuda };

// What messages call an array, e.g. "field" or "mean[2]"; it becomes text where there is something to say.
struct Name {
    Name(const char* whole = "", std::int64_t item_of_it = -1) : list(whole), item(item_of_it) {}
    std::string text() const { return list + (item < 0 ? "" : "[" + std::to_string(item) + "]"); }

    const char* list;
    std::int64_t item;
};

inline std::string operator+(const Name& name, const std::string& message) {
    return name.text() + message;
}

// Keeps its source alive for as long as it lives.
struct ArrayView {
    Name name;
    void* data = nullptr;
    Dtype dtype = Dtype::float64;
    Device device = Device::cpu;
    int device_index = 0;
    Shape shape;
    std::int64_t bytes = 0;
    pybind11::object owner;
};

enum class Access { read, write };

// Raises TypeError (kind, dtype) or ValueError (device, strides, alignment, read-only, values that the memory does not
// hold) with what was got and what was expected.
ArrayView view_of(const pybind11::object& array, const Name& name, Access access, Kind kind = Kind::floating);

// Raises ValueError unless `view` has this shape, and dtype and place of `like`.
void expect(const ArrayView& view, const Shape& shape, Dtype dtype, const ArrayView& like);

// Raises ValueError if memory that is written overlaps any other memory of the call.
void refuse_overlap(const std::vector<const ArrayView*>& written, const std::vector<const ArrayView*>& others);

// e.g. "float32 (2, 3, 8, 8) on cpu"
std::string describe(const ArrayView& view);

} // namespace neuroscale::bindings
