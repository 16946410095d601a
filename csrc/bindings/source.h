// What NumPy arrays and DLPack tensors share on their way to a view; the bindings see array_view.h alone.
#pragma once

#include "array_view.h"

namespace neuroscale::bindings {

// An array as it was found. Strides are counted in elements (unit 1) or bytes (unit: those of an element); nullptr
// stands for contiguous ones.
struct Found {
    void* data;
    const std::int64_t* shape;
    const std::int64_t* strides;
    std::int64_t unit;
    std::int64_t dimensions;
};

// Fills in the shape and the data of a view whose name and dtype are known. Raises ValueError.
void place(const Found& found, ArrayView& view);

// Raises TypeError.
[[noreturn]] void refuse_dtype(const Name& name, const std::string& got, Kind kind);

ArrayView view_of_tensor(const pybind11::object& tensor, const Name& name, Kind kind);

} // namespace neuroscale::bindings
