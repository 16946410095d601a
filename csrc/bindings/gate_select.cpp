#include "neuroscale/kernels/gate_select.h"

#include "bindings.h"
#include "run.h"

namespace py = pybind11;

namespace neuroscale::bindings {

using kernels::Selection;

static void gate_select(const py::object& score, double threshold, const py::object& knots, const py::object& levels,
                        std::uint8_t not_finite, std::uint8_t uncertain, const py::object& reason,
                        const py::object& error, const py::object& refused, const py::object& parts, bool reference,
                        std::uintptr_t stream) {
    const ArrayView s = view_of(score, "score", Access::read);
    const ArrayView x = view_of(knots, "knots", Access::read);
    const ArrayView y = view_of(levels, "levels", Access::read);
    const ArrayView why = view_of(reason, "reason", Access::write, Kind::uint8);
    const ArrayView e = view_of(error, "error", Access::write);
    const ArrayView rows = view_of(refused, "refused", Access::write, Kind::int64);
    const ArrayView work = view_of(parts, "parts", Access::write, Kind::int64);
    if (s.shape.size() != 1 || x.shape.size() != 1 || work.shape.size() != 1 || work.shape[0] < 2) {
        throw py::value_error("score: got shape " + describe(s.shape) + " with knots " + describe(x.shape) +
                              " and parts " + describe(work.shape) + ", expected [points], [knots], [2 or more]");
    }
    expect(x, x.shape, s.dtype, s);
    expect(y, x.shape, s.dtype, s);
    expect(why, s.shape, Dtype::uint8, s);
    expect(e, s.shape, s.dtype, s);
    expect(rows, s.shape, Dtype::int64, s);
    expect(work, work.shape, Dtype::int64, s);
    refuse_overlap({&why, &e, &rows, &work}, {&s, &x, &y});
    const Call call{"gate_select", reference, stream};
    with_type(s, [&](auto zero) {
        using T = decltype(zero);
        const Selection<T> a{data<const T>(s),
                             s.shape[0],
                             static_cast<T>(threshold),
                             data<const T>(x),
                             data<const T>(y),
                             x.shape[0],
                             not_finite,
                             uncertain,
                             data<std::uint8_t>(why),
                             data<T>(e),
                             data<std::int64_t>(rows),
                             data<std::int64_t>(work),
                             work.shape[0] - 1};
        run(
            call, s, [&] { kernels::reference::gate_select(a); }, [&] { kernels::cpu::gate_select(a); },
            NEUROSCALE_ON_CUDA(kernels::cuda::gate_select(a, call.queue())));
    });
}

void bind_gate_select(py::module_& module) {
    module.def("gate_select", &gate_select, py::arg("score"), py::arg("threshold"), py::arg("knots"), py::arg("levels"),
               py::arg("not_finite"), py::arg("uncertain"), py::arg("reason"), py::arg("error"), py::arg("refused"),
               py::arg("parts"), py::arg("reference"), py::arg("stream"));
}

} // namespace neuroscale::bindings
