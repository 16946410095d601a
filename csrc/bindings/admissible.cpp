#include "neuroscale/kernels/admissible.h"

#include "bindings.h"
#include "run.h"

namespace py = pybind11;

namespace neuroscale::bindings {

using kernels::Tensors;

static void check(const ArrayView& tensors, std::int64_t first, std::int64_t d) {
    const Shape& s = tensors.shape;
    const bool known = s.size() == 3 && (d == 2 || d == 3 || d == 6);
    if (!known || first < 0 || first + d > s[2]) {
        throw py::value_error("tensors: got shape " + describe(s) + " with first column " + std::to_string(first) +
                              ", expected [tensors, d, columns] with d = 2, 3 or 6 and first + d <= columns");
    }
}

static void admissible(const py::object& tensors, std::int64_t first, const py::object& lower, const py::object& upper,
                       const py::object& wanted, const py::object& changed, double slack, double lowest, bool reference,
                       std::uintptr_t stream) {
    const ArrayView t = view_of(tensors, "tensors", Access::write);
    const std::int64_t d = t.shape.size() == 3 ? t.shape[1] : 0;
    check(t, first, d);
    const std::optional<ArrayView> low = optional_view(lower, "lower", Access::read);
    const std::optional<ArrayView> high = optional_view(upper, "upper", Access::read);
    const std::optional<ArrayView> mask = optional_view(wanted, "wanted", Access::read, Kind::uint8);
    const ArrayView out = view_of(changed, "changed", Access::write, Kind::uint8);
    std::vector<const ArrayView*> others;
    if (low.has_value() != high.has_value()) {
        throw py::value_error("lower, upper: got one of the two, expected both or neither");
    }
    if (low) {
        expect(*low, {t.shape[0], d, d}, t.dtype, t);
        expect(*high, {t.shape[0], d, d}, t.dtype, t);
        others = {&*low, &*high};
    }
    if (mask) {
        expect(*mask, {t.shape[0]}, Dtype::uint8, t);
        others.push_back(&*mask);
    }
    expect(out, {t.shape[0]}, Dtype::uint8, t);
    refuse_overlap({&t, &out}, others);
    const Call call{"admissible", reference, stream};
    with_type(t, [&](auto zero) {
        using T = decltype(zero);
        const Tensors<T> a{data<T>(t),
                           data<const T>(low),
                           data<const T>(high),
                           data<const std::uint8_t>(mask),
                           data<std::uint8_t>(out),
                           t.shape[0],
                           t.shape[2],
                           first,
                           static_cast<int>(d),
                           slack,
                           lowest};
        run(
            call, t, [&] { kernels::reference::admissible(a); }, [&] { kernels::cpu::admissible(a); },
            NEUROSCALE_ON_CUDA(kernels::cuda::admissible(a, call.queue())));
    });
}

void bind_admissible(py::module_& module) {
    module.def("admissible", &admissible, py::arg("tensors"), py::arg("first"), py::arg("lower"), py::arg("upper"),
               py::arg("wanted"), py::arg("changed"), py::arg("slack"), py::arg("lowest"), py::arg("reference"),
               py::arg("stream"));
}

} // namespace neuroscale::bindings
