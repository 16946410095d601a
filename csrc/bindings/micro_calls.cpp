// The loop over a user's own micro simulations: `solve(data, dt)` of each, with a dictionary in and one out.
//
// What is asked and answered is that of `solve_each` in neuroscale_couple/fine/micro_calls.py, which is its reference.
// Errors of a simulation pass through; `progress` then holds its place.
#include <pybind11/pybind11.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace neuroscale::bindings {

namespace {

// One field of a dictionary. scalar: a single number, else `size` of them in an array.
struct Field {
    py::object name;
    Py_ssize_t column;
    Py_ssize_t size;
    bool scalar;
    py::object rows; // of an input: array [calls, size], of which a simulation gets its row; of a scalar: None
};

// A view of a C-contiguous array; throws ValueError for another.
struct Memory {
    Py_buffer view{};

    Memory(const py::object& array, const char* name, char type, int dimensions, bool written) {
        const int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (written ? PyBUF_WRITABLE : 0);
        if (PyObject_GetBuffer(array.ptr(), &view, flags) != 0) {
            throw py::error_already_set();
        }
        const std::string format = view.format == nullptr ? "B" : view.format;
        const bool right = type == 'd' ? format == "d" : format == "q" || format == "l";
        if (!right || view.itemsize != 8 || view.ndim != dimensions) {
            PyBuffer_Release(&view);
            throw py::value_error(std::string(name) + ": got format " + format + ", expected '" + type + "' in " +
                                  std::to_string(dimensions) + " dimension(s)");
        }
    }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    ~Memory() { PyBuffer_Release(&view); }

    Py_ssize_t extent(int dimension) const { return view.shape[dimension]; }
    template <typename T>
    T* data() const {
        return static_cast<T*>(view.buf);
    }
};

// Types of NumPy whose objects are numbers. A float64 of NumPy is a float of Python too: the number lies at one place.
struct Numpy {
    PyTypeObject* float64;
    PyTypeObject* floating;
    PyTypeObject* integer;
};

PyTypeObject* type_of(const py::module_& numpy, const char* name) {
    return reinterpret_cast<PyTypeObject*>(py::object(numpy.attr(name)).release().ptr()); // kept to the end
}

const Numpy& types() {
    static const Numpy known = [] {
        const py::module_ numpy = py::module_::import("numpy");
        const Numpy found{type_of(numpy, "float64"), type_of(numpy, "floating"), type_of(numpy, "integer")};
        if (PyType_IsSubtype(found.float64, &PyFloat_Type) == 0) {
            throw py::type_error("numpy.float64 is no float of Python");
        }
        return found;
    }();
    return known;
}

// A new reference to numpy.float64(value), or nullptr with an error set.
PyObject* numpy_float(double value) {
    PyTypeObject* type = types().float64;
    PyObject* made = type->tp_alloc(type, 0);
    if (made != nullptr) {
        reinterpret_cast<PyFloatObject*>(made)->ob_fval = value;
    }
    return made;
}

std::vector<Field> fields_of(const py::sequence& given, bool inputs) {
    std::vector<Field> fields;
    Py_ssize_t column = 0;
    for (const py::handle entry : given) {
        const auto row = py::cast<py::tuple>(entry);
        const auto size = py::cast<Py_ssize_t>(row[1]);
        py::object name = row[0];
        PyObject* key = name.release().ptr();
        PyUnicode_InternInPlace(&key);
        fields.push_back({py::reinterpret_steal<py::object>(key), column, size == 0 ? 1 : size, size == 0,
                          inputs ? py::object(row[2]) : py::none()});
        column += fields.back().size;
    }
    return fields;
}

// What a simulation is asked. The dictionary and its numbers serve the next call too, if the simulation has let go of
// them and left them as they were: it cannot tell them from new ones.
class Question {
public:
    explicit Question(const std::vector<Field>& fields) : fields_(fields), numbers_(fields.size()) {}

    // Throws error_already_set.
    const py::object& next(const double* row, Py_ssize_t call) {
        const bool fresh = !untouched();
        if (fresh) {
            asked_ = py::dict();
        }
        for (std::size_t i = 0; i < fields_.size(); ++i) {
            const Field& field = fields_[i];
            if (field.scalar && !fresh) {
                reinterpret_cast<PyFloatObject*>(numbers_[i].ptr())->ob_fval = row[field.column];
                continue;
            }
            auto value = py::reinterpret_steal<py::object>(field.scalar ? numpy_float(row[field.column])
                                                                        : PySequence_GetItem(field.rows.ptr(), call));
            if (!value || PyDict_SetItem(asked_.ptr(), field.name.ptr(), value.ptr()) != 0) {
                throw py::error_already_set();
            }
            if (field.scalar) {
                numbers_[i] = std::move(value);
            }
        }
        return asked_;
    }

private:
    // Whether nobody else holds the dictionary or a number of it, and each number is where it was.
    bool untouched() const {
#if defined(Py_GIL_DISABLED)
        return false; // counts of references say less there
#else
        if (!asked_ || Py_REFCNT(asked_.ptr()) != 1 ||
            PyDict_Size(asked_.ptr()) != static_cast<Py_ssize_t>(fields_.size())) {
            return false;
        }
        for (std::size_t i = 0; i < fields_.size(); ++i) {
            PyObject* held = PyDict_GetItemWithError(asked_.ptr(), fields_[i].name.ptr());
            const bool same = held != nullptr && (!fields_[i].scalar || held == numbers_[i].ptr());
            if (!same || (fields_[i].scalar && Py_REFCNT(held) != 2)) { // the dictionary's and ours
                PyErr_Clear();
                return false;
            }
        }
        return true;
#endif
    }

    const std::vector<Field>& fields_;
    py::object asked_;
    std::vector<py::object> numbers_; // of scalars
};

// Whether `given` is one finite number, and which.
bool number(PyObject* given, double& value) {
    if (PyFloat_Check(given)) {
        value = PyFloat_AS_DOUBLE(given);
    } else if (PyLong_Check(given) || PyObject_TypeCheck(given, types().floating) ||
               PyObject_TypeCheck(given, types().integer)) {
        value = PyFloat_AsDouble(given);
        if (value == -1.0 && PyErr_Occurred() != nullptr) {
            PyErr_Clear();
            return false;
        }
    } else {
        return false;
    }
    return std::isfinite(value);
}

// The same for an array of doubles.
bool numbers_of_array(PyObject* given, double* values, Py_ssize_t size) {
    Py_buffer view;
    if (PyObject_GetBuffer(given, &view, PyBUF_STRIDES | PyBUF_FORMAT) != 0) {
        PyErr_Clear();
        return false;
    }
    bool good = view.ndim == 1 && view.shape[0] == size && view.format != nullptr && std::strcmp(view.format, "d") == 0;
    for (Py_ssize_t i = 0; good && i < size; ++i) {
        std::memcpy(values + i, static_cast<const char*>(view.buf) + i * view.strides[0], sizeof(double));
        good = std::isfinite(values[i]);
    }
    PyBuffer_Release(&view);
    return good;
}

// Whether `given` holds `size` finite numbers, and which.
bool numbers(PyObject* given, double* values, Py_ssize_t size) {
    if (PyObject_CheckBuffer(given)) {
        return numbers_of_array(given, values, size);
    }
    if (!(PyList_CheckExact(given) || PyTuple_CheckExact(given)) || PySequence_Fast_GET_SIZE(given) != size) {
        return false;
    }
    for (Py_ssize_t i = 0; i < size; ++i) {
        if (!number(PySequence_Fast_GET_ITEM(given, i), values[i])) {
            return false;
        }
    }
    return true;
}

// Whether an answer is a plain dictionary of all fields, and its numbers.
bool take(PyObject* answer, const std::vector<Field>& fields, double* row) {
    if (!PyDict_CheckExact(answer)) {
        return false;
    }
    for (const Field& field : fields) {
        PyObject* given = PyDict_GetItemWithError(answer, field.name.ptr());
        if (given == nullptr) {
            PyErr_Clear();
            return false;
        }
        const bool good =
            field.scalar ? number(given, row[field.column]) : numbers(given, row + field.column, field.size);
        if (!good) {
            return false;
        }
    }
    return true;
}

Py_ssize_t width(const std::vector<Field>& fields) {
    return fields.empty() ? 0 : fields.back().column + fields.back().size;
}

void solve_each(const py::list& solves, const py::object& places, const py::object& rows, const py::sequence& asked,
                const py::object& inputs, double dt, const py::sequence& answered, const py::object& outputs,
                const py::object& progress, py::list& unusual) {
    const std::vector<Field> in = fields_of(asked, true);
    const std::vector<Field> out = fields_of(answered, false);
    const Memory place(places, "places", 'q', 1, false);
    const Memory where(rows, "rows", 'q', 1, false);
    const Memory x(inputs, "inputs", 'd', 2, false);
    const Memory y(outputs, "outputs", 'd', 2, true);
    const Memory told(progress, "progress", 'q', 1, true);
    const auto calls = static_cast<Py_ssize_t>(solves.size());
    if (place.extent(0) != calls || where.extent(0) != calls || x.extent(1) < width(in) || y.extent(1) < width(out) ||
        told.extent(0) < 1) {
        throw py::value_error("places, rows, inputs, outputs or progress do not fit the calls");
    }
    const auto* row_of = where.data<const std::int64_t>();
    for (Py_ssize_t i = 0; i < calls; ++i) {
        if (row_of[i] < 0 || row_of[i] >= x.extent(0) || row_of[i] >= y.extent(0)) {
            throw py::index_error("row " + std::to_string(row_of[i]) + " is outside of inputs or outputs");
        }
    }
    const py::float_ step(dt);
    volatile std::int64_t* now = told.data<std::int64_t>(); // the other process looks at it while a call hangs
    Question question(in);
    for (Py_ssize_t i = 0; i < calls && i < static_cast<Py_ssize_t>(solves.size()); ++i) {
        const py::object& data = question.next(x.data<double>() + row_of[i] * x.extent(1), i);
        *now = place.data<std::int64_t>()[i];
        PyObject* arguments[] = {nullptr, data.ptr(), step.ptr()};
        const auto solve = py::reinterpret_borrow<py::object>(PyList_GET_ITEM(solves.ptr(), i));
        const auto answer = py::reinterpret_steal<py::object>(
            PyObject_Vectorcall(solve.ptr(), arguments + 1, 2 | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr));
        if (!answer) {
            throw py::error_already_set();
        }
        if (!take(answer.ptr(), out, y.data<double>() + row_of[i] * y.extent(1))) {
            unusual.append(py::make_tuple(i, answer));
        }
    }
}

} // namespace

PYBIND11_MODULE(_calls, module) {
    module.doc() = "Calls of micro simulations; use neuroscale_couple.fine.micro_calls.";
    static_cast<void>(types());
    module.def("solve_each", &solve_each, py::arg("solves"), py::arg("places"), py::arg("rows"), py::arg("asked"),
               py::arg("inputs"), py::arg("dt"), py::arg("answered"), py::arg("outputs"), py::arg("progress"),
               py::arg("unusual"));
}

} // namespace neuroscale::bindings
