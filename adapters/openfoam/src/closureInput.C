// SPDX-License-Identifier: GPL-3.0-or-later
// Copyright (C) 2026 the neuroscale-couple authors
//
// This file is part of the OpenFOAM adapter of neuroscale-couple: free software under the terms of the GNU General
// Public License as published by the Free Software Foundation, either version 3 of the License, or (at your option) any
// later version. It comes without any warranty. See ../LICENSE.

#include "closureInput.H"

#include "fvcGrad.H"

namespace Foam {
namespace neuroscale {

closureInput::closureInput(const word& name, const dictionary& dict, const closurePoints& points)
    : name_(name), points_(points), unit_(dict.getOrDefault<string>("unit", "1")) {
    const std::string value = dict.get<word>("value");
    const bool strain = value.compare(0, 7, "strain(") == 0;
    derived_ = strain || value.compare(0, 5, "grad(") == 0;
    const std::size_t start = derived_ ? value.find('(') + 1 : 0;
    field_ = word(value.substr(start, value.size() - start - (derived_ ? 1 : 0)));
    size_ = sizeOf(dict);
    if (strain && size_ != 9) {
        FatalIOErrorInFunction(dict) << "neuroscaleClosure: input " << name_ << ": " << value << " needs a vector field"
                                     << exit(FatalIOError);
    }
    columns_ =
        closureColumns(points.mesh(), dict, dict.getOrDefault<wordList>("components", wordList()), size_, strain);
    values_.resize(points.size() * columns_.size());
}

int closureInput::sizeOf(const dictionary& dict) const {
    const fvMesh& mesh = points_.mesh();
    if (mesh.foundObject<volScalarField>(field_)) {
        return derived_ ? 3 : 1;
    }
    if (mesh.foundObject<volVectorField>(field_)) {
        return derived_ ? 9 : 3;
    }
    if (mesh.foundObject<volTensorField>(field_) && !derived_) {
        return 9;
    }
    FatalIOErrorInFunction(dict) << "neuroscaleClosure: input " << name_ << ": the solver has no field " << field_
                                 << (derived_ ? " to take the gradient of" : "") << "; it has the scalar fields "
                                 << mesh.names<volScalarField>() << " and the vector fields "
                                 << mesh.names<volVectorField>() << exit(FatalIOError);
    return 0;
}

const std::vector<double>& closureInput::gather() {
    const fvMesh& mesh = points_.mesh();
    if (derived_ && size_ == 3) {
        ofScalar_ = fvc::grad(mesh.lookupObject<volScalarField>(field_));
        pack(ofScalar_());
    } else if (derived_) {
        ofVector_ = fvc::grad(mesh.lookupObject<volVectorField>(field_));
        pack(ofVector_());
    } else if (size_ == 1) {
        pack(mesh.lookupObject<volScalarField>(field_));
    } else if (size_ == 3) {
        pack(mesh.lookupObject<volVectorField>(field_));
    } else {
        pack(mesh.lookupObject<volTensorField>(field_));
    }
    return values_;
}

template <class Type>
void closureInput::pack(const GeometricField<Type, fvPatchField, volMesh>& values) {
    double* to = values_.data();
    const auto append = [&](const UList<Type>& from) {
        const double* components = reinterpret_cast<const double*>(from.cdata());
        for (label i = 0; i < from.size(); ++i, components += size_) {
            for (const closureColumn& column : columns_) {
                *to++ = column.of(components, size_);
            }
        }
    };
    append(values.primitiveField());
    points_.forPatches([&](const fvPatch& patch, std::size_t) { append(values.boundaryField()[patch.index()]); });
}

} // namespace neuroscale
} // namespace Foam
