#include "neuroscale/kernels/coarsen_pyramid.h"

#include "array_view.h"
#include "bindings.h"

namespace py = pybind11;

namespace neuroscale::bindings {

using kernels::PyramidShape;

static PyramidShape shape_of(const ArrayView& field, std::size_t levels) {
    const std::vector<std::int64_t>& s = field.shape;
    if (s.size() != 4 && s.size() != 5) {
        throw py::value_error(field.name + ": got shape " + describe(s) +
                              ", expected [points, components, y, x] or [points, components, z, y, x]");
    }
    const bool volume = s.size() == 5;
    const auto n = static_cast<std::int64_t>(levels);
    const PyramidShape shape{s[0] * s[1], volume ? s[2] : 1, s[s.size() - 2], s[s.size() - 1], n, volume};
    if (!kernels::divisible(shape)) {
        throw py::value_error(field.name + ": got shape " + describe(s) + " with levels " + std::to_string(levels) +
                              ", expected at least 1 level and sides that are positive multiples of 2^levels");
    }
    return shape;
}

static std::vector<ArrayView> views_of(const py::list& coarse, const ArrayView& field) {
    std::vector<ArrayView> views;
    ArrayView expected = field;
    for (std::size_t level = 0; level < coarse.size(); ++level) {
        for (std::size_t axis = 2; axis < expected.shape.size(); ++axis) {
            expected.shape[axis] /= 2;
        }
        views.push_back(view_of(coarse[level], "coarse[" + std::to_string(level) + "]", Access::write));
        const ArrayView& got = views.back();
        const bool place = got.device == expected.device && got.device_index == expected.device_index;
        if (got.dtype != expected.dtype || got.shape != expected.shape || !place) {
            throw py::value_error(got.name + ": got " + describe(got) + ", expected " + describe(expected));
        }
    }
    return views;
}

template <typename T>
static void run(const ArrayView& field, const std::vector<ArrayView>& coarse, const PyramidShape& shape, bool reference,
                std::uintptr_t stream) {
    T* targets[kernels::max_pyramid_levels] = {};
    for (std::size_t level = 0; level < coarse.size(); ++level) {
        targets[level] = static_cast<T*>(coarse[level].data);
    }
    const T* fine = static_cast<const T*>(field.data);
    int error = 0;
    {
        const py::gil_scoped_release released;
        if (field.device == Device::cuda) {
#if defined(NEUROSCALE_HAS_CUDA)
            error = kernels::cuda::coarsen_pyramid(fine, targets, shape, reinterpret_cast<void*>(stream));
#endif
        } else if (reference) {
            kernels::reference::coarsen_pyramid(fine, targets, shape);
        } else {
            kernels::cpu::coarsen_pyramid(fine, targets, shape);
        }
    }
#if defined(NEUROSCALE_HAS_CUDA)
    if (error != 0) {
        throw std::runtime_error("coarsen_pyramid on " + describe(field) +
                                 ": CUDA: " + kernels::cuda::error_text(error));
    }
#else
    static_cast<void>(error);
    static_cast<void>(stream);
#endif
}

static void coarsen_pyramid(const py::object& field, const py::list& coarse, bool reference, std::uintptr_t stream) {
    const ArrayView fine = view_of(field, "field", Access::read);
    const PyramidShape shape = shape_of(fine, coarse.size());
    const std::vector<ArrayView> targets = views_of(coarse, fine);
#if defined(NEUROSCALE_HAS_CUDA)
    const bool cuda = !reference;
#else
    const bool cuda = false;
#endif
    if (fine.device == Device::cuda && !cuda) {
        throw py::value_error("field: got " + describe(fine) + ", expected memory of the CPU for this backend");
    }
    if (fine.dtype == Dtype::float32) {
        run<float>(fine, targets, shape, reference, stream);
    } else {
        run<double>(fine, targets, shape, reference, stream);
    }
}

static int cuda_devices() {
#if defined(NEUROSCALE_HAS_CUDA)
    return kernels::cuda::device_count();
#else
    return 0;
#endif
}

void bind_coarsen_pyramid(py::module_& module) {
    module.def("coarsen_pyramid", &coarsen_pyramid, py::arg("field"), py::arg("coarse"), py::arg("reference"),
               py::arg("stream"));
    module.def("cuda_devices", &cuda_devices);
}

} // namespace neuroscale::bindings
