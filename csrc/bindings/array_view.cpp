#include "array_view.h"

#include "source.h"

#include <pybind11/numpy.h>

namespace py = pybind11;

namespace neuroscale::bindings {

static const char* name_of(Dtype dtype) {
    switch (dtype) {
    case Dtype::float32:
        return "float32";
    case Dtype::float64:
        return "float64";
    case Dtype::int64:
        return "int64";
    default:
        return "uint8";
    }
}

static std::int64_t size_of(Dtype dtype) {
    switch (dtype) {
    case Dtype::float32:
        return 4;
    case Dtype::uint8:
        return 1;
    default:
        return 8;
    }
}

static std::string describe(const Shape& shape, Dtype dtype, const ArrayView& place) {
    const bool cpu = place.device == Device::cpu;
    return std::string(name_of(dtype)) + " " + describe(shape) +
           (cpu ? " on cpu" : " on cuda:" + std::to_string(place.device_index));
}

std::string describe(const ArrayView& view) {
    return describe(view.shape, view.dtype, view);
}

// Sides of length 1 have no stride to speak of.
static bool contiguous(const Shape& shape, const std::int64_t* strides, std::int64_t unit) {
    std::int64_t expected = unit;
    for (std::size_t i = shape.size(); i-- > 0;) {
        if (shape[i] != 1 && strides[i] != expected) {
            return false;
        }
        expected *= shape[i];
    }
    return true;
}

static std::int64_t bytes_of(const Shape& shape, Dtype dtype) {
    std::int64_t bytes = size_of(dtype);
    for (const std::int64_t side : shape) {
        bytes *= side;
    }
    return bytes;
}

static void refuse_strides(const Name& name, const Shape& shape, const std::int64_t* strides, std::int64_t unit) {
    Shape elements(strides, shape.size());
    bool whole = true;
    for (std::size_t i = 0; i < elements.size(); ++i) {
        whole = whole && elements[i] % unit == 0;
    }
    for (std::size_t i = 0; i < elements.size() && whole; ++i) {
        elements[i] /= unit;
    }
    throw py::value_error(name + ": got strides " + describe(elements) + (whole ? " (elements)" : " (bytes)") +
                          " for shape " + describe(shape) + ", expected a contiguous row-major array");
}

void place(const Found& found, ArrayView& view) {
    const auto dimensions = static_cast<std::size_t>(found.dimensions);
    if (dimensions > Shape::most) {
        throw py::value_error(view.name + ": got " + std::to_string(dimensions) + " dimensions, expected at most " +
                              std::to_string(Shape::most));
    }
    view.shape = Shape(found.shape, dimensions);
    view.bytes = bytes_of(view.shape, view.dtype);
    if (found.strides != nullptr && view.bytes > 0 && !contiguous(view.shape, found.strides, found.unit)) {
        refuse_strides(view.name, view.shape, found.strides, found.unit);
    }
    view.data = found.data;
    if (reinterpret_cast<std::uintptr_t>(view.data) % static_cast<std::uintptr_t>(size_of(view.dtype)) != 0) {
        throw py::value_error(view.name + ": got data at an address that is no multiple of " +
                              std::to_string(size_of(view.dtype)) + " bytes, expected aligned data");
    }
    if (view.data == nullptr && view.bytes > 0) {
        throw py::value_error(view.name + ": got no memory for shape " + describe(view.shape) +
                              ", expected an array with memory of its own");
    }
}

void refuse_dtype(const Name& name, const std::string& got, Kind kind) {
    const char* wanted = kind == Kind::floating ? "float32 or float64 in native byte order"
                         : kind == Kind::int64  ? "int64"
                                                : "uint8";
    throw py::type_error(name + ": got dtype " + got + ", expected " + wanted);
}

static Dtype dtype_of(const py::array& array, const Name& name, Kind kind) {
    const py::dtype dtype = array.dtype();
    const int number = dtype.normalized_num(); // the same for int64 by any of its names
    const bool native = dtype.byteorder() == '=' || dtype.byteorder() == '|';
    if (native && kind == Kind::floating && number == py::dtype::num_of<float>()) {
        return Dtype::float32;
    }
    if (native && kind == Kind::floating && number == py::dtype::num_of<double>()) {
        return Dtype::float64;
    }
    if (native && kind == Kind::int64 && number == py::dtype::num_of<std::int64_t>()) {
        return Dtype::int64;
    }
    if (native && kind == Kind::uint8 && number == py::dtype::num_of<std::uint8_t>()) {
        return Dtype::uint8;
    }
    refuse_dtype(name, py::str(dtype).cast<std::string>(), kind);
}

static ArrayView view_of_numpy(const py::array& array, const Name& name, Access access, Kind kind) {
    static_assert(sizeof(py::ssize_t) == sizeof(std::int64_t));
    ArrayView view;
    view.name = name;
    view.owner = array;
    view.dtype = dtype_of(array, name, kind);
    const auto* shape = reinterpret_cast<const std::int64_t*>(array.shape());
    const auto* strides = reinterpret_cast<const std::int64_t*>(array.strides());
    place({const_cast<void*>(array.data()), shape, strides, size_of(view.dtype), array.ndim()}, view);
    if (access == Access::write && !array.writeable()) {
        throw py::value_error(name + ": got a read-only array, expected a writeable one");
    }
    return view;
}

ArrayView view_of(const py::object& array, const Name& name, Access access, Kind kind) {
    if (py::isinstance<py::array>(array)) {
        return view_of_numpy(py::reinterpret_borrow<py::array>(array), name, access, kind);
    }
    return view_of_tensor(array, name, kind);
}

void expect(const ArrayView& view, const Shape& shape, Dtype dtype, const ArrayView& like) {
    const bool together = view.device == like.device && view.device_index == like.device_index;
    if (view.dtype != dtype || view.shape != shape || !together) {
        throw py::value_error(view.name + ": got " + describe(view) + ", expected " + describe(shape, dtype, like));
    }
}

static bool overlap(const ArrayView& a, const ArrayView& b) {
    const auto first = reinterpret_cast<std::uintptr_t>(a.data);
    const auto second = reinterpret_cast<std::uintptr_t>(b.data);
    return a.bytes > 0 && b.bytes > 0 && first < second + static_cast<std::uintptr_t>(b.bytes) &&
           second < first + static_cast<std::uintptr_t>(a.bytes);
}

static void refuse_overlap(const ArrayView& written, const ArrayView& other) {
    if (overlap(written, other)) {
        throw py::value_error(written.name + ": got memory that overlaps " + other.name.text() +
                              ", expected memory of its own");
    }
}

void refuse_overlap(const std::vector<const ArrayView*>& written, const std::vector<const ArrayView*>& others) {
    for (std::size_t i = 0; i < written.size(); ++i) {
        for (std::size_t j = i + 1; j < written.size(); ++j) {
            refuse_overlap(*written[i], *written[j]);
        }
        for (const ArrayView* other : others) {
            refuse_overlap(*written[i], *other);
        }
    }
}

} // namespace neuroscale::bindings
