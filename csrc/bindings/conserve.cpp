#include "neuroscale/kernels/conserve.h"

#include "bindings.h"
#include "run.h"

namespace py = pybind11;

namespace neuroscale::bindings {

using kernels::Balances;

// The arrays of one call, in the order of the Python arguments. What the plan (entries, chunks ...) holds is checked
// once, where it is made (neuroscale_couple.kernels.Plan).
struct Arrays {
    std::optional<ArrayView> entries;
    ArrayView chunks;
    ArrayView chunk_segment;
    ArrayView segment_chunks;
    ArrayView values;
    ArrayView columns;
    ArrayView volumes;
    ArrayView variance;
    std::optional<ArrayView> lower;
    std::optional<ArrayView> upper;
    ArrayView multiplier;

    std::int64_t k() const { return columns.shape[0]; }
    std::int64_t segments() const { return multiplier.shape[0]; }

    std::vector<const ArrayView*> others() const {
        std::vector<const ArrayView*> all{&chunks,  &chunk_segment, &segment_chunks, &columns,
                                          &volumes, &variance,      &multiplier};
        for (const std::optional<ArrayView>* view : {&entries, &lower, &upper}) {
            if (*view) {
                all.push_back(&**view);
            }
        }
        return all;
    }

    template <typename T>
    Balances<T> balances() const {
        Balances<T> b{};
        b.values = data<T>(values);
        b.stride = values.shape[1];
        b.columns = data<const std::int64_t>(columns);
        b.k = k();
        b.volumes = data<const T>(volumes);
        b.variance = data<const T>(variance);
        b.lower = data<const T>(lower);
        b.upper = data<const T>(upper);
        b.entries = data<const std::int64_t>(entries);
        b.n = values.shape[0];
        b.chunks = data<const std::int64_t>(chunks);
        b.chunk_segment = data<const std::int64_t>(chunk_segment);
        b.segment_chunks = data<const std::int64_t>(segment_chunks);
        b.chunk_count = chunk_segment.shape[0];
        b.segments = segments();
        b.multiplier = data<const double>(multiplier);
        return b;
    }
};

static void check(const Arrays& a) {
    if (a.values.shape.size() != 2 || a.multiplier.shape.size() != 2 || a.columns.shape.size() != 1) {
        throw py::value_error("values: got shape " + describe(a.values.shape) + " with columns " +
                              describe(a.columns.shape) + " and multiplier " + describe(a.multiplier.shape) +
                              ", expected [points, columns], [balances] and [segments, balances]");
    }
    expect(a.columns, a.columns.shape, Dtype::int64, a.values);
    expect(a.volumes, {a.values.shape[0]}, a.values.dtype, a.values);
    expect(a.variance, {a.values.shape[0]}, a.values.dtype, a.values);
    expect(a.multiplier, {a.multiplier.shape[0], a.k()}, Dtype::float64, a.values);
    expect(a.chunk_segment, a.chunk_segment.shape, Dtype::int64, a.values);
    expect(a.chunks, {a.chunk_segment.shape[0] + 1}, Dtype::int64, a.values);
    expect(a.segment_chunks, {a.segments() + 1}, Dtype::int64, a.values);
    if (a.lower.has_value() != a.upper.has_value()) {
        throw py::value_error("lower, upper: got one of the two, expected both or neither");
    }
    if (a.lower) {
        expect(*a.lower, a.values.shape, a.values.dtype, a.values);
        expect(*a.upper, a.values.shape, a.values.dtype, a.values);
    }
    if (a.entries) {
        expect(*a.entries, {a.values.shape[0]}, Dtype::int64, a.values);
    }
}

static Arrays arrays_of(const py::tuple& plan, const py::object& values, const py::object& columns,
                        const py::object& volumes, const py::object& variance, const py::tuple& bounds,
                        const py::object& multiplier, Access access) {
    const Arrays arrays{optional_view(plan[0], "entries", Access::read, Kind::int64),
                        view_of(plan[1], "chunks", Access::read, Kind::int64),
                        view_of(plan[2], "chunk_segment", Access::read, Kind::int64),
                        view_of(plan[3], "segment_chunks", Access::read, Kind::int64),
                        view_of(values, "values", access),
                        view_of(columns, "columns", Access::read, Kind::int64),
                        view_of(volumes, "volumes", Access::read),
                        view_of(variance, "variance", Access::read),
                        optional_view(bounds[0], "lower", Access::read),
                        optional_view(bounds[1], "upper", Access::read),
                        view_of(multiplier, "multiplier", Access::read)};
    check(arrays);
    return arrays;
}

static void conserve_sums(const py::tuple& plan, const py::object& values, const py::object& columns,
                          const py::object& volumes, const py::object& variance, const py::tuple& bounds,
                          const py::object& multiplier, const py::object& parts, const py::object& sums, bool reference,
                          std::uintptr_t stream) {
    const Arrays a = arrays_of(plan, values, columns, volumes, variance, bounds, multiplier, Access::read);
    const ArrayView work = view_of(parts, "parts", Access::write);
    const ArrayView out = view_of(sums, "sums", Access::write);
    expect(work, {a.chunk_segment.shape[0], a.k(), kernels::conserve_sums_count}, Dtype::float64, a.values);
    expect(out, {a.segments(), a.k(), kernels::conserve_sums_count}, Dtype::float64, a.values);
    std::vector<const ArrayView*> others = a.others();
    others.push_back(&a.values);
    refuse_overlap({&work, &out}, others);
    const Call call{"conserve_sums", reference, stream};
    with_type(a.values, [&](auto zero) {
        const auto b = a.balances<decltype(zero)>();
        double* to_parts = data<double>(work);
        double* to_sums = data<double>(out);
        run(
            call, a.values, [&] { kernels::reference::conserve_sums(b, to_parts, to_sums); },
            [&] { kernels::cpu::conserve_sums(b, to_parts, to_sums); },
            NEUROSCALE_ON_CUDA(kernels::cuda::conserve_sums(b, to_parts, to_sums, call.queue())));
    });
}

static void conserve_apply(const py::tuple& plan, const py::object& values, const py::object& columns,
                           const py::object& volumes, const py::object& variance, const py::tuple& bounds,
                           const py::object& multiplier, bool reference, std::uintptr_t stream) {
    const Arrays a = arrays_of(plan, values, columns, volumes, variance, bounds, multiplier, Access::write);
    refuse_overlap({&a.values}, a.others());
    const Call call{"conserve_apply", reference, stream};
    with_type(a.values, [&](auto zero) {
        const auto b = a.balances<decltype(zero)>();
        run(
            call, a.values, [&] { kernels::reference::conserve_apply(b); }, [&] { kernels::cpu::conserve_apply(b); },
            NEUROSCALE_ON_CUDA(kernels::cuda::conserve_apply(b, call.queue())));
    });
}

void bind_conserve(py::module_& module) {
    module.def("conserve_sums", &conserve_sums, py::arg("plan"), py::arg("values"), py::arg("columns"),
               py::arg("volumes"), py::arg("variance"), py::arg("bounds"), py::arg("multiplier"), py::arg("parts"),
               py::arg("sums"), py::arg("reference"), py::arg("stream"));
    module.def("conserve_apply", &conserve_apply, py::arg("plan"), py::arg("values"), py::arg("columns"),
               py::arg("volumes"), py::arg("variance"), py::arg("bounds"), py::arg("multiplier"), py::arg("reference"),
               py::arg("stream"));
}

} // namespace neuroscale::bindings
