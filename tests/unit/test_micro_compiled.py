"""A micro simulation compiled with pybind11, as the Micro Manager's users write them in C++."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pybind11
import pytest

from neuroscale_couple.config.schema import Fine, Micro
from neuroscale_couple.fine.micro_manager import MicroManager, look
from neuroscale_couple.physics.opaque import OpaqueProblem
from neuroscale_couple.values import Batch, FieldSpec, Points

SOURCE = r"""
#include <pybind11/pybind11.h>
namespace py = pybind11;

class MicroSimulation {
 public:
  explicit MicroSimulation(int id) : state_(id) {}
  void initialize(py::dict data) { state_ += data["a"].cast<double>(); }
  py::dict solve(py::dict data, double dt) {
    state_ += dt * data["a"].cast<double>();
    py::list v = py::list(data["v"]);
    py::dict answer;
    answer["b"] = state_;
    answer["w"] = py::make_tuple(v[1], v[0]);
    return answer;
  }
  py::list get_state() const { py::list s; s.append(state_); return s; }
  void set_state(py::list s) { state_ = s[0].cast<double>(); }

 private:
  double state_;
};

class Old {
 public:
  Old() {}
  void initialize() {}
};

PYBIND11_MODULE(compiled_micro, m) {
  py::class_<MicroSimulation>(m, "MicroSimulation")
      .def(py::init<int>())
      .def("initialize", &MicroSimulation::initialize)
      .def("solve", &MicroSimulation::solve)
      .def("get_state", &MicroSimulation::get_state)
      .def("set_state", &MicroSimulation::set_state);
  py::class_<Old>(m, "Old").def(py::init<>()).def("initialize", &Old::initialize);
}
"""
SIDES = ((FieldSpec("a", ("",), "1"), FieldSpec("v", ("x", "y"), "1")),
         (FieldSpec("b", ("",), "1"), FieldSpec("w", ("x", "y"), "1")))  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("compiled")
    (folder / "micro.cpp").write_text(SOURCE)
    includes = [f"-I{path}" for path in (pybind11.get_include(), sysconfig.get_path("include"))]
    name = "compiled_micro" + sysconfig.get_config_var("EXT_SUFFIX")
    command = [compiler, "-std=c++17", "-O0", "-shared", "-fPIC", *includes, "micro.cpp", "-o", name]
    subprocess.run(command, cwd=folder, check=True, timeout=110)
    return folder


@pytest.mark.slow
def test_a_compiled_simulation_is_built_initialised_solved_and_set_back(folder: Path) -> None:
    settings = Fine(solver="micro_manager", micro=Micro(file="compiled_micro", folder=str(folder), workers=2))
    problem = OpaqueProblem(*SIDES)
    assert look(settings, problem).restorable
    solver = MicroManager(settings, problem)
    solver.attach(Points(np.arange(4), np.zeros((4, 2)), np.ones(4)))
    inputs = np.array([[1.0 + i, 10.0 * i, 20.0] for i in range(4)])
    try:
        for window in range(2):
            for iteration in range(2):
                solver.begin(Batch(window, iteration, window + 0.5, 0.5, inputs))
                answer = solver.solve(np.arange(4), inputs)
            solver.commit()
    finally:
        solver.close()
    assert answer.converged.all()
    assert np.array_equal(answer.outputs[:, 0], np.arange(4) + 2.0 * inputs[:, 0])  # id + first a + 2 steps of a/2
    assert np.array_equal(answer.outputs[:, 1:], inputs[:, [2, 1]])


@pytest.mark.slow
def test_compiled_signatures_are_told_apart(folder: Path) -> None:
    program = """
import compiled_micro as m
from neuroscale_couple.fine.micro_worker import construct, takes_data
print(takes_data(construct(m.MicroSimulation, 3).initialize), takes_data(construct(m.Old, 3).initialize))
"""
    said = subprocess.run([sys.executable, "-c", program], cwd=folder, check=True, capture_output=True, text=True)
    assert said.stdout.split() == ["True", "False"]
