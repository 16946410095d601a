#include "array_view.h"

#include "dlpack.h"

#include <pybind11/numpy.h>

namespace py = pybind11;

namespace neuroscale::bindings {

static std::string text(const py::handle& object) {
    return py::str(object).cast<std::string>();
}

std::string describe(const std::vector<std::int64_t>& shape) {
    std::string joined = "(";
    for (std::size_t i = 0; i < shape.size(); ++i) {
        joined += (i > 0 ? ", " : "") + std::to_string(shape[i]);
    }
    return joined + (shape.size() == 1 ? ",)" : ")");
}

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

static std::string describe(const std::vector<std::int64_t>& shape, Dtype dtype, const ArrayView& place) {
    const bool cpu = place.device == Device::cpu;
    return std::string(name_of(dtype)) + " " + describe(shape) +
           (cpu ? " on cpu" : " on cuda:" + std::to_string(place.device_index));
}

std::string describe(const ArrayView& view) {
    return describe(view.shape, view.dtype, view);
}

// Strides in elements; sides of length 1 and empty arrays have no stride to speak of.
static bool contiguous(const std::vector<std::int64_t>& shape, const std::vector<std::int64_t>& strides) {
    std::int64_t expected = 1;
    for (const std::int64_t side : shape) {
        if (side == 0) {
            return true;
        }
    }
    for (std::size_t i = shape.size(); i-- > 0;) {
        if (shape[i] != 1 && strides[i] != expected) {
            return false;
        }
        expected *= shape[i];
    }
    return true;
}

static void refuse_strides(const std::string& name, const std::vector<std::int64_t>& shape,
                           const std::vector<std::int64_t>& strides) {
    if (!contiguous(shape, strides)) {
        throw py::value_error(name + ": got strides " + describe(strides) + " (elements) for shape " + describe(shape) +
                              ", expected a contiguous row-major array");
    }
}

[[noreturn]] static void refuse_dtype(const std::string& name, const std::string& got, Kind kind) {
    const char* wanted = kind == Kind::floating ? "float32 or float64 in native byte order"
                         : kind == Kind::int64  ? "int64"
                                                : "uint8";
    throw py::type_error(name + ": got dtype " + got + ", expected " + wanted);
}

static void refuse_alignment(const ArrayView& view) {
    if (reinterpret_cast<std::uintptr_t>(view.data) % static_cast<std::uintptr_t>(size_of(view.dtype)) != 0) {
        throw py::value_error(view.name + ": got data at an address that is no multiple of " +
                              std::to_string(size_of(view.dtype)) + " bytes, expected aligned data");
    }
}

static ArrayView view_of_numpy(const py::array& array, const std::string& name, Access access, Kind kind) {
    ArrayView view;
    view.name = name;
    view.owner = array;
    const py::dtype dtype = array.dtype();
    if (kind == Kind::floating && dtype.equal(py::dtype::of<float>())) {
        view.dtype = Dtype::float32;
    } else if (kind == Kind::floating && dtype.equal(py::dtype::of<double>())) {
        view.dtype = Dtype::float64;
    } else if (kind == Kind::int64 && dtype.equal(py::dtype::of<std::int64_t>())) {
        view.dtype = Dtype::int64;
    } else if (kind == Kind::uint8 && dtype.equal(py::dtype::of<std::uint8_t>())) {
        view.dtype = Dtype::uint8;
    } else {
        refuse_dtype(name, text(dtype), kind);
    }
    std::vector<std::int64_t> strides;
    for (py::ssize_t i = 0; i < array.ndim(); ++i) {
        view.shape.push_back(array.shape(i));
        strides.push_back(array.strides(i) / array.itemsize());
    }
    refuse_strides(name, view.shape, strides);
    if (access == Access::write && !array.writeable()) {
        throw py::value_error(name + ": got a read-only array, expected a writeable one");
    }
    view.data = const_cast<void*>(array.data());
    refuse_alignment(view);
    return view;
}

// Takes the tensor out of its capsule, as the protocol asks; the returned capsule frees it.
static py::capsule take(const py::capsule& capsule, DLManagedTensor*& managed) {
    managed = capsule.get_pointer<DLManagedTensor>();
    PyCapsule_SetName(capsule.ptr(), "used_dltensor");
    return py::capsule(managed, [](void* pointer) {
        auto* owned = static_cast<DLManagedTensor*>(pointer);
        if (owned->deleter != nullptr) {
            owned->deleter(owned);
        }
    });
}

static void read_tensor(const DLTensor& tensor, ArrayView& view, Kind kind) {
    const int code = tensor.dtype.code;
    const int bits = tensor.dtype.bits;
    const bool plain = tensor.dtype.lanes == 1;
    if (plain && kind == Kind::floating && code == dl_float && (bits == 32 || bits == 64)) {
        view.dtype = bits == 32 ? Dtype::float32 : Dtype::float64;
    } else if (plain && kind == Kind::int64 && code == dl_int && bits == 64) {
        view.dtype = Dtype::int64;
    } else if (plain && kind == Kind::uint8 && code == dl_uint && bits == 8) {
        view.dtype = Dtype::uint8;
    } else {
        refuse_dtype(view.name, "DLPack code " + std::to_string(code) + " with " + std::to_string(bits) + " bits",
                     kind);
    }
    if (tensor.device.device_type != dl_cpu && tensor.device.device_type != dl_cuda) {
        throw py::value_error(view.name + ": got DLPack device type " + std::to_string(tensor.device.device_type) +
                              ", expected 1 (CPU) or 2 (CUDA)");
    }
    view.device = tensor.device.device_type == dl_cpu ? Device::cpu : Device::cuda;
    view.device_index = tensor.device.device_id;
    view.shape.assign(tensor.shape, tensor.shape + tensor.ndim);
    if (tensor.strides != nullptr) {
        refuse_strides(view.name, view.shape, {tensor.strides, tensor.strides + tensor.ndim});
    }
    view.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
    refuse_alignment(view);
}

ArrayView view_of(const py::object& array, const std::string& name, Access access, Kind kind) {
    if (py::isinstance<py::array>(array)) {
        return view_of_numpy(py::reinterpret_borrow<py::array>(array), name, access, kind);
    }
    if (!py::hasattr(array, "__dlpack__")) {
        throw py::type_error(name + ": got " + text(py::type::handle_of(array)) +
                             ", expected a NumPy array or a DLPack tensor");
    }
    const py::object exported = array.attr("__dlpack__")();
    if (!PyCapsule_IsValid(exported.ptr(), "dltensor")) {
        throw py::type_error(name + ": got an object without a DLPack 0.x capsule, expected \"dltensor\"");
    }
    ArrayView view;
    view.name = name;
    DLManagedTensor* managed = nullptr;
    view.owner = take(py::reinterpret_borrow<py::capsule>(exported), managed);
    read_tensor(managed->dl_tensor, view, kind);
    return view;
}

void expect(const ArrayView& view, const std::vector<std::int64_t>& shape, Dtype dtype, const ArrayView& like) {
    const bool place = view.device == like.device && view.device_index == like.device_index;
    if (view.dtype != dtype || view.shape != shape || !place) {
        throw py::value_error(view.name + ": got " + describe(view) + ", expected " + describe(shape, dtype, like));
    }
}

static std::int64_t bytes_of(const ArrayView& view) {
    std::int64_t bytes = size_of(view.dtype);
    for (const std::int64_t side : view.shape) {
        bytes *= side;
    }
    return bytes;
}

static bool overlap(const ArrayView& a, const ArrayView& b) {
    const auto first = reinterpret_cast<std::uintptr_t>(a.data);
    const auto second = reinterpret_cast<std::uintptr_t>(b.data);
    const auto a_bytes = static_cast<std::uintptr_t>(bytes_of(a));
    const auto b_bytes = static_cast<std::uintptr_t>(bytes_of(b));
    return a_bytes > 0 && b_bytes > 0 && first < second + b_bytes && second < first + a_bytes;
}

void refuse_overlap(const std::vector<const ArrayView*>& written, const std::vector<const ArrayView*>& others) {
    for (std::size_t i = 0; i < written.size(); ++i) {
        std::vector<const ArrayView*> rest(written.begin() + static_cast<std::ptrdiff_t>(i) + 1, written.end());
        rest.insert(rest.end(), others.begin(), others.end());
        for (const ArrayView* other : rest) {
            if (overlap(*written[i], *other)) {
                throw py::value_error(written[i]->name + ": got memory that overlaps " + other->name +
                                      ", expected memory of its own");
            }
        }
    }
}

} // namespace neuroscale::bindings
