// SPDX-License-Identifier: GPL-3.0-or-later
// Copyright (C) 2026 the neuroscale-couple authors
//
// This file is part of the OpenFOAM adapter of neuroscale-couple: free software under the terms of the GNU General
// Public License as published by the Free Software Foundation, either version 3 of the License, or (at your option) any
// later version. It comes without any warranty. See ../LICENSE.

#include "neuroscaleMonitor.H"

#include "addToRunTimeSelectionTable.H"

#include <algorithm>

namespace Foam {
namespace functionObjects {

defineTypeNameAndDebug(neuroscaleMonitor, 0);
addToRunTimeSelectionTable(functionObject, neuroscaleMonitor, dictionary);

neuroscaleMonitor::neuroscaleMonitor(const word& name, const Time& runTime, const dictionary& dict)
    : fvMeshFunctionObject(name, runTime, dict), writeFile(mesh_, name, "closure", dict) {
    read(dict);
    writeHeader(file(), "What the closure " + closure_ + " answered");
    writeCommented(file(), "Time");
    for (const char* column :
         {"exchanges", "change", "coarse", "fine_head", "fine_solver", "largest_error", "model", "seconds"}) {
        writeTabbed(file(), column);
    }
    file() << endl;
}

bool neuroscaleMonitor::read(const dictionary& dict) {
    closure_ = dict.get<word>("closure");
    return fvMeshFunctionObject::read(dict) && writeFile::read(dict);
}

const neuroscale::closureSession* neuroscaleMonitor::session() const {
    const auto* session = time_.findObject<neuroscale::closureSession>(closure_);
    return session && session->exchanges() > 0 ? session : nullptr;
}

bool neuroscaleMonitor::execute() {
    const auto* closure = session();
    if (!closure) {
        WarningInFunction << "there is no answer of a closure " << closure_
                          << "; it is the name of a neuroscaleClosure in fvOptions" << endl;
        return true;
    }
    const neuroscale::closureReply& reply = closure->reply();
    labelList counts(3, Zero);
    for (const std::uint8_t source : reply.source) {
        ++counts[std::min<int>(source, 2)];
    }
    scalar worst = reply.error.empty() ? 0 : *std::max_element(reply.error.begin(), reply.error.end());
    for (label& count : counts) {
        reduce(count, sumOp<label>());
    }
    reduce(worst, maxOp<scalar>());
    const scalar all = max(label(1), sum(counts));
    Info << type() << " " << name() << ": " << closure->iteration() + 1 << " exchanges, change " << reply.change
         << ", coarse head " << 100 * counts[0] / all << " %, fine head " << 100 * counts[1] / all << " %, fine solver "
         << 100 * counts[2] / all << " %, largest estimated error " << worst << ", model " << label(reply.modelVersion)
         << endl;
    if (Pstream::master()) {
        file() << time_.timeName() << tab << closure->iteration() + 1 << tab << reply.change << tab << counts[0] << tab
               << counts[1] << tab << counts[2] << tab << worst << tab << label(reply.modelVersion) << tab
               << reply.seconds << endl;
    }
    return true;
}

template <class Values>
void neuroscaleMonitor::writeField(const word& name, const Values& values) const {
    volScalarField field(
        IOobject(closure_ + ":" + name, time_.timeName(), mesh_, IOobject::NO_READ, IOobject::NO_WRITE, false), mesh_,
        dimensionedScalar("0", dimless, 0));
    forAll(field, i) {
        field[i] = values(static_cast<std::size_t>(i));
    }
    session()->points().forPatches([&](const fvPatch& patch, std::size_t first) {
        scalarField& faces = field.boundaryFieldRef()[patch.index()];
        forAll(faces, i) {
            faces[i] = values(first + static_cast<std::size_t>(i));
        }
    });
    field.correctBoundaryConditions();
    field.write();
}

bool neuroscaleMonitor::write() {
    const auto* closure = session();
    if (!closure) {
        return true;
    }
    const neuroscale::closureReply& reply = closure->reply();
    writeField("source", [&](std::size_t i) { return scalar(reply.source[i]); });
    writeField("reason", [&](std::size_t i) { return scalar(reply.reason[i]); });
    writeField("error", [&](std::size_t i) { return reply.error[i]; });
    writeField("model", [&](std::size_t) { return scalar(reply.modelVersion); });
    return true;
}

} // namespace functionObjects
} // namespace Foam
