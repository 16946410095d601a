// SPDX-License-Identifier: GPL-3.0-or-later
// Copyright (C) 2026 the neuroscale-couple authors
//
// This file is part of the OpenFOAM adapter of neuroscale-couple: free software under the terms of the GNU General
// Public License as published by the Free Software Foundation, either version 3 of the License, or (at your option) any
// later version. It comes without any warranty. See ../LICENSE.

#include "closurePoints.H"

#include "globalIndex.H"
#include "labelIOList.H"

#include <cmath>

namespace Foam {
namespace neuroscale {

closurePoints::closurePoints(const fvMesh& mesh) : mesh_(mesh), cells_(mesh.nCells()), faces_(mesh.nFaces()) {
    labelList cell = addressing("cellProcAddressing");
    labelList face = addressing("faceProcAddressing");
    const bool known = returnReduce(cell.size() == cells_ && face.size() == faces_, andOp<bool>());
    const globalIndex cellsBefore(cells_);
    const globalIndex facesBefore(faces_);
    const std::int64_t total = returnReduce(cells_, sumOp<label>());
    ids_.reserve(static_cast<std::size_t>(cells_));
    for (label i = 0; i < cells_; ++i) {
        ids_.push_back(known ? cell[i] : cellsBefore.toGlobal(i));
    }
    forPatches([&](const fvPatch& patch, std::size_t) {
        for (label i = patch.start(); i < patch.start() + patch.size(); ++i) {
            // faceProcAddressing counts from 1, negative where the face is turned round
            ids_.push_back(total + (known ? mag(face[i]) - 1 : facesBefore.toGlobal(i)));
        }
    });
}

labelList closurePoints::addressing(const word& name) const {
    if (!Pstream::parRun()) {
        return labelList();
    }
    IOobject io(name, mesh_.facesInstance(), mesh_.meshSubDir, mesh_, IOobject::READ_IF_PRESENT, IOobject::NO_WRITE,
                false);
    return labelIOList(io);
}

std::vector<double> closurePoints::coordinates() const {
    std::vector<double> result;
    result.reserve(3 * size());
    const auto append = [&result](const vector& x) { result.insert(result.end(), {x.x(), x.y(), x.z()}); };
    for (const vector& x : mesh_.C().primitiveField()) {
        append(x);
    }
    forPatches([&](const fvPatch& patch, std::size_t) {
        for (const vector& x : patch.Cf()) {
            append(x);
        }
    });
    return result;
}

std::vector<double> closurePoints::volumes() const {
    std::vector<double> result(size(), 0.0);
    const auto& v = mesh_.V();
    std::copy(v.begin(), v.end(), result.begin());
    return result;
}

std::vector<std::int64_t> closurePoints::structures(const word& field) const {
    std::vector<std::int64_t> result(ids_.begin(), ids_.begin() + cells_);
    if (!field.empty()) {
        // that of the start serves all times
        const word instance = mesh_.time().findInstance(mesh_.dbDir(), field, IOobject::READ_IF_PRESENT);
        const volScalarField values(IOobject(field, instance, mesh_, IOobject::MUST_READ, IOobject::NO_WRITE, false),
                                    mesh_);
        for (label i = 0; i < cells_; ++i) {
            const double value = values[i];
            if (!(value >= 0) || value != std::floor(value)) {
                FatalErrorInFunction << "neuroscaleClosure: field " << field << " (key structure) is " << value
                                     << " in cell " << i << "; the numbers of micro structures are whole and >= 0"
                                     << exit(FatalError);
            }
            result[static_cast<std::size_t>(i)] = static_cast<std::int64_t>(value);
        }
    }
    forPatches([&](const fvPatch& patch, std::size_t) {
        for (const label cell : patch.faceCells()) {
            result.push_back(result[static_cast<std::size_t>(cell)]);
        }
    });
    return result;
}

void closurePoints::checkSize() const {
    const bool changed = mesh_.nCells() != cells_ || mesh_.nFaces() != faces_;
    if (returnReduce(changed, orOp<bool>())) {
        FatalErrorInFunction << "neuroscaleClosure: the mesh has changed its size at time " << mesh_.time().timeName()
                             << ": " << mesh_.nCells() << " cells and " << mesh_.nFaces() << " faces, at the start "
                             << cells_ << " and " << faces_
                             << ". The points of a closure are those of the start: use a mesh whose topology stays"
                             << " (dynamicFvMesh without refinement)" << exit(FatalError);
    }
}

} // namespace neuroscale
} // namespace Foam
