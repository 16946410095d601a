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

std::string describe(const ArrayView& view) {
    const std::string dtype = view.dtype == Dtype::float32 ? "float32 " : "float64 ";
    const bool cpu = view.device == Device::cpu;
    return dtype + describe(view.shape) + (cpu ? " on cpu" : " on cuda:" + std::to_string(view.device_index));
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

[[noreturn]] static void refuse_dtype(const std::string& name, const std::string& got) {
    throw py::type_error(name + ": got dtype " + got + ", expected float32 or float64 in native byte order");
}

static ArrayView view_of_numpy(const py::array& array, const std::string& name, Access access) {
    ArrayView view;
    view.name = name;
    view.owner = array;
    if (array.dtype().equal(py::dtype::of<float>())) {
        view.dtype = Dtype::float32;
    } else if (array.dtype().equal(py::dtype::of<double>())) {
        view.dtype = Dtype::float64;
    } else {
        refuse_dtype(name, text(array.dtype()));
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

static void read_tensor(const DLTensor& tensor, ArrayView& view) {
    const bool plain = tensor.dtype.code == dl_float && tensor.dtype.lanes == 1;
    if (!plain || (tensor.dtype.bits != 32 && tensor.dtype.bits != 64)) {
        refuse_dtype(view.name, "DLPack code " + std::to_string(tensor.dtype.code) + " with " +
                                    std::to_string(tensor.dtype.bits) + " bits");
    }
    view.dtype = tensor.dtype.bits == 32 ? Dtype::float32 : Dtype::float64;
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
}

ArrayView view_of(const py::object& array, const std::string& name, Access access) {
    if (py::isinstance<py::array>(array)) {
        return view_of_numpy(py::reinterpret_borrow<py::array>(array), name, access);
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
    read_tensor(managed->dl_tensor, view);
    return view;
}

} // namespace neuroscale::bindings
