// preCICE's participant with the methods that transport/precice.py needs, by the names of preCICE's Python package.
//
// Vertex ids are arrays of int32 and data arrays of float64, handed to preCICE as they lie in memory. Errors of preCICE
// are RuntimeErrors, as those of its package. The interpreter's lock is given back while preCICE waits for others.
#include <precice/precice.hpp>

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <string>
#include <vector>

namespace py = pybind11;

namespace neuroscale::bindings {

namespace {

using Ids = py::array_t<precice::VertexID, py::array::c_style>;
using Values = py::array_t<double, py::array::c_style>;

std::size_t count(const py::array& array) {
    return static_cast<std::size_t>(array.size());
}

// The ids of a call; throws ValueError for more than one dimension.
precice::span<const precice::VertexID> vertices(const Ids& ids) {
    if (ids.ndim() != 1) {
        throw py::value_error("ids: got " + std::to_string(ids.ndim()) + " dimensions, expected 1");
    }
    return {ids.data(), count(ids)};
}

// Ids [n] and coordinates [n, dimensions] of all vertices of a directly accessed mesh.
py::tuple vertices_of(const precice::Participant& participant, const std::string& mesh) {
    const py::ssize_t n = participant.getMeshVertexSize(mesh);
    const py::ssize_t dimensions = participant.getMeshDimensions(mesh);
    Ids ids(n);
    Values coordinates({n, dimensions});
    participant.getMeshVertexIDsAndCoordinates(mesh, {ids.mutable_data(), count(ids)},
                                               {coordinates.mutable_data(), count(coordinates)});
    return py::make_tuple(ids, coordinates);
}

// Values at a time within the window: [n] of a scalar, else [n, dimensions].
Values read(const precice::Participant& participant, const std::string& mesh, const std::string& data, const Ids& ids,
            double time) {
    const auto places = vertices(ids);
    const py::ssize_t n = ids.size();
    const py::ssize_t components = participant.getDataDimensions(mesh, data);
    Values values = components == 1 ? Values(n) : Values({n, components});
    participant.readData(mesh, data, places, time, {values.mutable_data(), count(values)});
    return values;
}

void write(precice::Participant& participant, const std::string& mesh, const std::string& data, const Ids& ids,
           const Values& values) {
    participant.writeData(mesh, data, vertices(ids), {values.data(), count(values)});
}

} // namespace

PYBIND11_MODULE(_precice, module) {
    using precice::Participant;
    using Released = py::call_guard<py::gil_scoped_release>;
    module.doc() = "preCICE's participant; use neuroscale_couple.transport.precice_binding.";
    py::class_<Participant>(module, "Participant")
        .def(py::init([](const std::string& name, const std::string& file, int rank, int ranks) {
            return new Participant(name, file, rank, ranks);
        }))
        .def("initialize", &Participant::initialize, Released())
        .def("advance", &Participant::advance, Released())
        .def("finalize", &Participant::finalize, Released())
        .def("is_coupling_ongoing", &Participant::isCouplingOngoing)
        .def("is_time_window_complete", &Participant::isTimeWindowComplete)
        .def("get_max_time_step_size", &Participant::getMaxTimeStepSize)
        .def("requires_writing_checkpoint", &Participant::requiresWritingCheckpoint)
        .def("requires_reading_checkpoint", &Participant::requiresReadingCheckpoint)
        .def("set_mesh_access_region",
             [](Participant& self, const std::string& mesh, const std::vector<double>& region) {
                 self.setMeshAccessRegion(mesh, {region.data(), region.size()});
             })
        .def("get_mesh_vertex_ids_and_coordinates", &vertices_of)
        .def("read_data", &read, py::arg("mesh"), py::arg("data"), py::arg("ids").noconvert(), py::arg("time"))
        .def("write_data", &write, py::arg("mesh"), py::arg("data"), py::arg("ids").noconvert(),
             py::arg("values").noconvert())
        .def("start_profiling_section",
             [](Participant& self, const std::string& name) { self.startProfilingSection(name); })
        .def("stop_last_profiling_section", &Participant::stopLastProfilingSection);
}

} // namespace neuroscale::bindings
