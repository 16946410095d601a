// One function per kernel, and one for what tensors tell; module.cpp calls them all.
#pragma once

#include <pybind11/pybind11.h>

namespace neuroscale::bindings {

void bind_tensor(pybind11::module_& module);
void bind_admissible(pybind11::module_& module);
void bind_coarsen_cells(pybind11::module_& module);
void bind_coarsen_pyramid(pybind11::module_& module);
void bind_conserve(pybind11::module_& module);
void bind_gate_select(pybind11::module_& module);

} // namespace neuroscale::bindings
