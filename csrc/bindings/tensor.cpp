// Tensors through DLPack: by the C functions of their type where it has them, a tenth of the time of a capsule.
#include "bindings.h"
#include "dlpack.h"
#include "source.h"

#include <pybind11/numpy.h>

namespace py = pybind11;

namespace neuroscale::bindings {

// A string that lives as long as the process; looking up attributes by it is quick.
static PyObject* interned(const char* text) {
    PyObject* string = PyUnicode_InternFromString(text);
    if (string == nullptr) {
        throw py::error_already_set();
    }
    return string;
}

// Takes the Python exception that a call into another library has left; the first line of its text.
static std::string taken_error() {
    const py::error_already_set error;
    const auto text = py::str(error.value()).cast<std::string>();
    return text.substr(0, text.find('\n'));
}

// The C functions of a type of tensors; nullptr where there are none that we know. The attribute has to be the type's
// own: a subclass may hold no memory, or see to its export by itself. It is looked up each time, which takes a tenth of
// the time of the call that it is for: a type may be gone and another in its place.
static const DLPackExchangeAPI* functions_of(const py::handle& type) {
    static PyObject* const attribute = interned("__dlpack_c_exchange_api__");
    constexpr const char* capsule_name = "dlpack_exchange_api";
    PyObject* const own = reinterpret_cast<PyTypeObject*>(type.ptr())->tp_dict;
    PyObject* const capsule = own == nullptr ? nullptr : PyDict_GetItemWithError(own, attribute);
    if (capsule == nullptr || PyCapsule_IsValid(capsule, capsule_name) == 0) {
        PyErr_Clear();
        return nullptr;
    }
    auto* header = static_cast<const DLPackExchangeAPIHeader*>(PyCapsule_GetPointer(capsule, capsule_name));
    while (header != nullptr && header->version.major > dl_major) {
        header = header->prev_api;
    }
    if (header == nullptr || header->version.major != dl_major) {
        return nullptr;
    }
    const auto* functions = reinterpret_cast<const DLPackExchangeAPI*>(header);
    return functions->dltensor_from_py_object_no_sync == nullptr ? nullptr : functions;
}

// Whether torch says so of its tensor; other libraries have no such attributes.
static bool says(PyObject* answer) {
    if (answer == nullptr && PyErr_ExceptionMatches(PyExc_AttributeError) == 0) {
        throw py::error_already_set();
    }
    PyErr_Clear();
    return py::reinterpret_steal<py::object>(answer).ptr() == Py_True;
}

// What neither way tells: a tensor of which more is known than its memory says. (Conjugates are complex, and refused
// for that.)
static void refuse_hidden(const py::object& tensor, const Name& name) {
    static PyObject* const requires_grad = interned("requires_grad");
    static PyObject* const is_neg = interned("is_neg");
    if (says(PyObject_GetAttr(tensor.ptr(), requires_grad))) {
        throw py::value_error(name + ": got a tensor that requires grad, expected one without");
    }
    if (says(PyObject_CallMethodNoArgs(tensor.ptr(), is_neg))) {
        throw py::value_error(name + ": got a tensor with the negative bit set, expected one whose memory holds its "
                                     "values (torch: resolve_neg)");
    }
}

[[noreturn]] static void refuse_exported(const Name& name, const std::string& reason) {
    throw py::value_error(name + ": got a tensor that its library does not hand over (" + reason +
                          "), expected one with memory of its own");
}

static Dtype dtype_of(const DLDataType& dtype, const Name& name, Kind kind) {
    const int code = dtype.code;
    const int bits = dtype.bits;
    const bool plain = dtype.lanes == 1;
    if (plain && kind == Kind::floating && code == dl_float && (bits == 32 || bits == 64)) {
        return bits == 32 ? Dtype::float32 : Dtype::float64;
    }
    if (plain && kind == Kind::int64 && code == dl_int && bits == 64) {
        return Dtype::int64;
    }
    if (plain && kind == Kind::uint8 && code == dl_uint && bits == 8) {
        return Dtype::uint8;
    }
    refuse_dtype(name, "DLPack code " + std::to_string(code) + " with " + std::to_string(bits) + " bits", kind);
}

static void read_tensor(const DLTensor& tensor, ArrayView& view, Kind kind) {
    view.dtype = dtype_of(tensor.dtype, view.name, kind);
    if (tensor.device.device_type != dl_cpu && tensor.device.device_type != dl_cuda) {
        throw py::value_error(view.name + ": got DLPack device type " + std::to_string(tensor.device.device_type) +
                              ", expected 1 (CPU) or 2 (CUDA)");
    }
    view.device = tensor.device.device_type == dl_cpu ? Device::cpu : Device::cuda;
    view.device_index = tensor.device.device_id;
    char* const data = static_cast<char*>(tensor.data);
    place({data == nullptr ? data : data + tensor.byte_offset, tensor.shape, tensor.strides, 1, tensor.ndim}, view);
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

static py::object exported(const py::object& tensor, const Name& name) {
    if (!py::hasattr(tensor, "__dlpack__")) {
        throw py::type_error(name + ": got " + py::str(py::type::handle_of(tensor)).cast<std::string>() +
                             ", expected a NumPy array or a DLPack tensor");
    }
    PyObject* const capsule = PyObject_CallMethod(tensor.ptr(), "__dlpack__", nullptr);
    if (capsule == nullptr && PyErr_ExceptionMatches(PyExc_BufferError) != 0) {
        refuse_exported(name, taken_error());
    }
    if (capsule == nullptr) {
        throw py::error_already_set();
    }
    auto owned = py::reinterpret_steal<py::object>(capsule);
    if (PyCapsule_IsValid(capsule, "dltensor") == 0) {
        throw py::type_error(name + ": got an object without a DLPack 0.x capsule, expected \"dltensor\"");
    }
    return owned;
}

ArrayView view_of_tensor(const py::object& tensor, const Name& name, Kind kind) {
    ArrayView view;
    view.name = name;
    refuse_hidden(tensor, name);
    if (const DLPackExchangeAPI* functions = functions_of(py::type::handle_of(tensor)); functions != nullptr) {
        DLTensor seen{}; // owns nothing: its shape is copied here, its memory lives as long as the Python object
        if (functions->dltensor_from_py_object_no_sync(tensor.ptr(), &seen) != 0) {
            refuse_exported(name, taken_error());
        }
        view.owner = tensor;
        read_tensor(seen, view, kind);
        return view;
    }
    DLManagedTensor* managed = nullptr;
    view.owner = take(py::reinterpret_steal<py::capsule>(exported(tensor, name).release()), managed);
    read_tensor(managed->dl_tensor, view, kind);
    return view;
}

// Whether tensors of this type are read through C functions.
static bool has_functions(const py::type& type) {
    return functions_of(type) != nullptr;
}

// The stream on which the library of a CUDA tensor queues its work; None where its type does not tell.
static py::object current_stream(const py::object& tensor) {
    const DLPackExchangeAPI* functions = functions_of(py::type::handle_of(tensor));
    if (functions == nullptr || functions->current_work_stream == nullptr) {
        return py::none();
    }
    DLTensor seen{};
    void* stream = nullptr;
    if (functions->dltensor_from_py_object_no_sync(tensor.ptr(), &seen) != 0 ||
        functions->current_work_stream(seen.device.device_type, seen.device.device_id, &stream) != 0) {
        throw py::error_already_set();
    }
    return py::int_(reinterpret_cast<std::uintptr_t>(stream));
}

void bind_tensor(py::module_& module) {
    module.def("has_functions", &has_functions, py::arg("type"));
    module.def("current_stream", &current_stream, py::arg("tensor"));
}

} // namespace neuroscale::bindings
