// SPDX-License-Identifier: GPL-3.0-or-later
// Copyright (C) 2026 the neuroscale-couple authors
//
// This file is part of the OpenFOAM adapter of neuroscale-couple: free software under the terms of the GNU General
// Public License as published by the Free Software Foundation, either version 3 of the License, or (at your option) any
// later version. It comes without any warranty. See ../LICENSE.

#include "closureColumns.H"

#include "ListOps.H"

namespace Foam {
namespace neuroscale {

namespace {

/// Names of the directions in which the mesh has more than one cell.
std::vector<std::string> directions(const fvMesh& mesh) {
    std::vector<std::string> result;
    for (direction d = 0; d < 3; ++d) {
        if (mesh.geometricD()[d] == 1) {
            result.emplace_back(1, "xyz"[d]);
        }
    }
    return result;
}

wordList allNames(const fvMesh& mesh, int size) {
    wordList result;
    for (const std::string& a : directions(mesh)) {
        if (size == 3) {
            result.append(word(a));
            continue;
        }
        for (const std::string& b : directions(mesh)) {
            result.append(word(a + b));
        }
    }
    return result;
}

int indexOf(char letter) {
    return letter - 'x';
}

bool isDirections(const std::string& text, std::size_t length) {
    return text.size() == length && text.find_first_not_of("xyz") == std::string::npos;
}

bool setWeights(closureColumn& column, int size, bool mean) {
    const std::string& name = column.name;
    const std::string pair = name.compare(0, 6, "gamma_") == 0 ? name.substr(6) : name;
    if (size == 3 && isDirections(name, 1)) {
        column.weight[static_cast<std::size_t>(indexOf(name[0]))] = 1.0;
        return true;
    }
    if (size != 9 || !isDirections(pair, 2)) {
        return false;
    }
    const std::size_t there = static_cast<std::size_t>(3 * indexOf(pair[0]) + indexOf(pair[1]));
    const std::size_t back = static_cast<std::size_t>(3 * indexOf(pair[1]) + indexOf(pair[0]));
    const bool sum = pair != name;
    if (sum || mean) {
        column.weight[there] += sum ? 1.0 : 0.5;
        column.weight[back] += sum ? 1.0 : 0.5;
    } else {
        column.weight[there] = 1.0;
    }
    return true;
}

} // namespace

double closureColumn::of(const double* components, int size) const {
    double sum = 0;
    for (int i = 0; i < size; ++i) {
        sum += weight[static_cast<std::size_t>(i)] * components[i];
    }
    return sum;
}

std::vector<closureColumn> closureColumns(const fvMesh& mesh, const dictionary& dict, wordList names, int size,
                                          bool mean) {
    std::vector<closureColumn> columns;
    if (size == 1) {
        closureColumn scalar;
        scalar.weight[0] = 1.0;
        if (names.size() > 1) {
            FatalIOErrorInFunction(dict) << "neuroscaleClosure: a scalar has one component, but components names "
                                         << names << exit(FatalIOError);
        }
        scalar.name = names.empty() ? "" : names[0];
        return {scalar};
    }
    if (names.empty()) {
        names = allNames(mesh, size);
    }
    for (const word& name : names) {
        closureColumn column;
        column.name = name;
        if (!setWeights(column, size, mean)) {
            FatalIOErrorInFunction(dict) << "neuroscaleClosure: component " << name << " is unknown; "
                                         << (size == 3 ? "a vector has x, y, z"
                                                       : "a tensor has xx, xy ... zz, and gamma_xy for xy + yx")
                                         << exit(FatalIOError);
        }
        columns.push_back(column);
    }
    return columns;
}

} // namespace neuroscale
} // namespace Foam
