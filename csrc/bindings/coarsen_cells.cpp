#include "neuroscale/kernels/coarsen_cells.h"

#include "bindings.h"
#include "run.h"

namespace py = pybind11;

namespace neuroscale::bindings {

using kernels::CellMap;

// The arrays of one call. What the map holds is checked once, where it is made (neuroscale_couple.kernels.CellMap).
struct Cells {
    ArrayView offsets;
    ArrayView cells;
    std::optional<ArrayView> weights;
    std::optional<ArrayView> scale;
    ArrayView fine;
    ArrayView coarse;

    CellMap map() const {
        return {offsets.shape[0] - 1, data<const std::int64_t>(offsets), data<const std::int64_t>(cells),
                cells.shape[0]};
    }
    std::int64_t components() const { return fine.shape[1]; }
};

static void check(const Cells& a, const ArrayView& written, const ArrayView& read) {
    if (a.fine.shape.size() != 2) {
        throw py::value_error("fine: got shape " + describe(a.fine.shape) + ", expected [fine cells, components]");
    }
    if (a.offsets.shape.size() != 1 || a.offsets.shape[0] < 1 || a.cells.shape.size() != 1) {
        throw py::value_error("offsets: got shape " + describe(a.offsets.shape) + " and cells " +
                              describe(a.cells.shape) + ", expected [coarse cells + 1] and [entries]");
    }
    expect(a.offsets, a.offsets.shape, Dtype::int64, a.fine);
    expect(a.cells, a.cells.shape, Dtype::int64, a.fine);
    expect(a.coarse, {a.offsets.shape[0] - 1, a.fine.shape[1]}, a.fine.dtype, a.fine);
    std::vector<const ArrayView*> others{&a.offsets, &a.cells, &read};
    if (a.weights) {
        expect(*a.weights, a.cells.shape, a.fine.dtype, a.fine);
        others.push_back(&*a.weights);
    }
    if (a.scale) {
        expect(*a.scale, {a.coarse.shape[0]}, a.fine.dtype, a.fine);
        others.push_back(&*a.scale);
    }
    refuse_overlap({&written}, others);
}

// Both directions differ only in which of the two fields is written.
static Cells views_of(const py::object& offsets, const py::object& cells, const py::object& weights,
                      const py::object& scale, const py::object& fine, const py::object& coarse, bool refine) {
    Cells a{view_of(offsets, "offsets", Access::read, Kind::int64),
            view_of(cells, "cells", Access::read, Kind::int64),
            optional_view(weights, "weights", Access::read),
            optional_view(scale, "scale", Access::read),
            view_of(fine, "fine", refine ? Access::write : Access::read),
            view_of(coarse, "coarse", refine ? Access::read : Access::write)};
    check(a, refine ? a.fine : a.coarse, refine ? a.coarse : a.fine);
    return a;
}

static void coarsen_cells(const py::object& offsets, const py::object& cells, const py::object& weights,
                          const py::object& scale, const py::object& fine, const py::object& coarse, bool reference,
                          std::uintptr_t stream) {
    const Cells a = views_of(offsets, cells, weights, scale, fine, coarse, false);
    const Call call{"coarsen_cells", reference, stream};
    with_type(a.fine, [&](auto zero) {
        using T = decltype(zero);
        const T* w = data<const T>(a.weights);
        const T* s = data<const T>(a.scale);
        const T* from = data<const T>(a.fine);
        T* to = data<T>(a.coarse);
        run(
            call, a.fine, [&] { kernels::reference::coarsen_cells(a.map(), w, s, from, a.components(), to); },
            [&] { kernels::cpu::coarsen_cells(a.map(), w, s, from, a.components(), to); },
            NEUROSCALE_ON_CUDA(kernels::cuda::coarsen_cells(a.map(), w, s, from, a.components(), to, call.queue())));
    });
}

static void refine_cells(const py::object& offsets, const py::object& cells, const py::object& weights,
                         const py::object& scale, const py::object& coarse, const py::object& fine, bool reference,
                         std::uintptr_t stream) {
    const Cells a = views_of(offsets, cells, weights, scale, fine, coarse, true);
    const Call call{"refine_cells", reference, stream};
    with_type(a.fine, [&](auto zero) {
        using T = decltype(zero);
        const T* w = data<const T>(a.weights);
        const T* s = data<const T>(a.scale);
        const T* from = data<const T>(a.coarse);
        T* to = data<T>(a.fine);
        run(
            call, a.fine, [&] { kernels::reference::refine_cells(a.map(), w, s, from, a.components(), to); },
            [&] { kernels::cpu::refine_cells(a.map(), w, s, from, a.components(), to); },
            NEUROSCALE_ON_CUDA(kernels::cuda::refine_cells(a.map(), w, s, from, a.components(), to, call.queue())));
    });
}

void bind_coarsen_cells(py::module_& module) {
    module.def("coarsen_cells", &coarsen_cells, py::arg("offsets"), py::arg("cells"), py::arg("weights"),
               py::arg("scale"), py::arg("fine"), py::arg("coarse"), py::arg("reference"), py::arg("stream"));
    module.def("refine_cells", &refine_cells, py::arg("offsets"), py::arg("cells"), py::arg("weights"),
               py::arg("scale"), py::arg("coarse"), py::arg("fine"), py::arg("reference"), py::arg("stream"));
}

} // namespace neuroscale::bindings
