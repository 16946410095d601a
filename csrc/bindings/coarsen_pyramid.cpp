#include "neuroscale/kernels/coarsen_pyramid.h"

#include "bindings.h"
#include "run.h"

#include <pybind11/stl.h>

#include <algorithm>

namespace py = pybind11;

namespace neuroscale::bindings {

using kernels::PyramidOutputs;
using kernels::PyramidShape;

static PyramidShape shape_of(const ArrayView& field, const std::vector<std::int64_t>& factors) {
    const Shape& s = field.shape;
    if (s.size() != 4 && s.size() != 5) {
        throw py::value_error(field.name + ": got shape " + describe(s) +
                              ", expected [points, components, y, x] or [points, components, z, y, x]");
    }
    const bool volume = s.size() == 5;
    const std::size_t levels = std::min<std::size_t>(factors.size(), kernels::max_pyramid_levels);
    PyramidShape shape{s[0] * s[1], volume ? s[2] : 1, s[s.size() - 2], s[s.size() - 1], 0, {}, volume};
    shape.levels = static_cast<std::int64_t>(levels);
    std::copy_n(factors.begin(), levels, shape.factor);
    if (levels != factors.size() || !kernels::divisible(shape)) {
        throw py::value_error(field.name + ": got shape " + describe(s) + " with factors " + describe(factors) +
                              ", expected at least 1 level, factors from 2 to 256, and sides that are positive "
                              "multiples of their product");
    }
    return shape;
}

static std::vector<ArrayView> views_of(const py::object& list, const char* name, const ArrayView& field,
                                       const std::vector<std::int64_t>& factors) {
    std::vector<ArrayView> views;
    if (list.is_none()) {
        return views;
    }
    const auto items = py::reinterpret_borrow<py::list>(list);
    if (items.size() != factors.size()) {
        throw py::value_error(std::string(name) + ": got " + std::to_string(items.size()) + " levels, expected " +
                              std::to_string(factors.size()));
    }
    Shape shape = field.shape;
    views.reserve(factors.size());
    for (std::size_t level = 0; level < factors.size(); ++level) {
        for (std::size_t axis = 2; axis < shape.size(); ++axis) {
            shape[axis] /= factors[level];
        }
        views.push_back(view_of(items[level], {name, static_cast<std::int64_t>(level)}, Access::write));
        expect(views.back(), shape, field.dtype, field);
    }
    return views;
}

// Volumes of all levels from the finest on, the same for all fields.
static std::vector<ArrayView> volumes_of(const py::object& list, const ArrayView& field,
                                         const std::vector<std::int64_t>& factors) {
    std::vector<ArrayView> views;
    if (list.is_none()) {
        return views;
    }
    const auto items = py::reinterpret_borrow<py::list>(list);
    if (items.size() != factors.size() + 1) {
        throw py::value_error("volumes: got " + std::to_string(items.size()) + " levels, expected " +
                              std::to_string(factors.size() + 1) + ", the finest among them");
    }
    Shape shape(field.shape.begin() + 2, field.shape.size() - 2);
    views.reserve(items.size());
    for (std::size_t level = 0; level < items.size(); ++level) {
        views.push_back(view_of(items[level], {"volumes", static_cast<std::int64_t>(level)}, Access::read));
        expect(views.back(), shape, field.dtype, field);
        for (std::size_t axis = 0; axis < shape.size(); ++axis) {
            shape[axis] /= level < factors.size() ? factors[level] : 1;
        }
    }
    return views;
}

// The pointers of one output, nullptr where it is not wanted.
template <typename T>
struct Pointers {
    explicit Pointers(const std::vector<ArrayView>& views) : wanted(!views.empty()) {
        for (std::size_t level = 0; level < views.size(); ++level) {
            level_of[level] = data<T>(views[level]);
        }
    }
    T* const* get() const { return wanted ? level_of : nullptr; }

    bool wanted;
    T* level_of[kernels::max_pyramid_levels + 1] = {};
};

static void coarsen_pyramid(const py::object& field, const std::vector<std::int64_t>& factors, const py::list& mean,
                            const py::object& variance, const py::object& total, const py::object& volumes,
                            bool reference, std::uintptr_t stream) {
    const ArrayView fine = view_of(field, "field", Access::read);
    const PyramidShape shape = shape_of(fine, factors);
    const std::vector<ArrayView> means = views_of(mean, "mean", fine, factors);
    const std::vector<ArrayView> variances = views_of(variance, "variance", fine, factors);
    const std::vector<ArrayView> totals = views_of(total, "total", fine, factors);
    const std::vector<ArrayView> sizes = volumes_of(volumes, fine, factors);
    if (!sizes.empty() && totals.empty()) {
        throw py::value_error("total: got none with volumes, expected arrays: the means are made from them");
    }
    std::vector<const ArrayView*> written;
    std::vector<const ArrayView*> read{&fine};
    for (const ArrayView& view : sizes) {
        read.push_back(&view);
    }
    for (const std::vector<ArrayView>* views : {&means, &variances, &totals}) {
        for (const ArrayView& view : *views) {
            written.push_back(&view);
        }
    }
    refuse_overlap(written, read);
    const Call call{"coarsen_pyramid", reference, stream};
    with_type(fine, [&](auto zero) {
        using T = decltype(zero);
        const Pointers<T> to_mean(means);
        const Pointers<T> to_variance(variances);
        const Pointers<T> to_total(totals);
        const PyramidOutputs<T> outputs{to_mean.get(), to_variance.get(), to_total.get()};
        const Pointers<const T> from_volumes(sizes);
        const T* const* v = from_volumes.get();
        const T* source = data<const T>(fine);
        run(
            call, fine, [&] { kernels::reference::coarsen_pyramid(source, v, outputs, shape); },
            [&] { kernels::cpu::coarsen_pyramid(source, v, outputs, shape); },
            NEUROSCALE_ON_CUDA(kernels::cuda::coarsen_pyramid(source, v, outputs, shape, call.queue())));
    });
}

static int cuda_devices() {
#if defined(NEUROSCALE_HAS_CUDA)
    return kernels::cuda::device_count();
#else
    return 0;
#endif
}

void bind_coarsen_pyramid(py::module_& module) {
    module.def("coarsen_pyramid", &coarsen_pyramid, py::arg("field"), py::arg("factors"), py::arg("mean"),
               py::arg("variance"), py::arg("total"), py::arg("volumes"), py::arg("reference"), py::arg("stream"));
    module.def("cuda_devices", &cuda_devices);
}

} // namespace neuroscale::bindings
