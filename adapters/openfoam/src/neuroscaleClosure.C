// SPDX-License-Identifier: GPL-3.0-or-later
// Copyright (C) 2026 the neuroscale-couple authors
//
// This file is part of the OpenFOAM adapter of neuroscale-couple: free software under the terms of the GNU General
// Public License as published by the Free Software Foundation, either version 3 of the License, or (at your option) any
// later version. It comes without any warranty. See ../LICENSE.

#include "neuroscaleClosure.H"

#include "addToRunTimeSelectionTable.H"
#include "stringListOps.H"

namespace Foam {
namespace fv {

defineTypeNameAndDebug(neuroscaleClosure, 0);
addToRunTimeSelectionTable(option, neuroscaleClosure, dictionary);

neuroscaleClosure::neuroscaleClosure(const word& name, const word& modelType, const dictionary& dict,
                                     const fvMesh& mesh)
    : option(name, modelType, dict, mesh), field_(coeffs_.get<word>("field")) {
    fieldNames_ = wordList(1, field_);
    applied_ = List<bool>(1, false);
    read(dict);
}

bool neuroscaleClosure::read(const dictionary& dict) {
    if (!option::read(dict)) {
        return false;
    }
    const dictionary& keys = coeffs_;
    const word exchange = keys.getOrDefault<word>("exchange", "once");
    if (exchange != "once" && exchange != "every") {
        FatalIOErrorInFunction(keys) << "neuroscaleClosure " << name_ << ": exchange is " << exchange
                                     << "; it may be once (in a time step) or every (time the equation is assembled)"
                                     << exit(FatalIOError);
    }
    every_ = exchange == "every";
    settings_.factor = keys.getOrDefault<scalar>("factor", 1);
    settings_.compact = keys.getOrDefault<bool>("compact", true);
    settings_.implicit = keys.getOrDefault<bool>("implicit", true);
    settings_.noFlux = keys.getOrDefault<wordRes>("noFlux", wordRes());
    for (const wordRe& patch : settings_.noFlux) {
        if (findStrings(patch, mesh_.boundaryMesh().names()).empty()) {
            FatalIOErrorInFunction(keys) << "neuroscaleClosure " << name_ << ": noFlux: there is no patch " << patch
                                         << "; the mesh has " << mesh_.boundaryMesh().names() << exit(FatalIOError);
        }
    }
    return true;
}

bool neuroscaleClosure::ask() {
    if (!session_) {
        session_.reset(new neuroscale::closureSession(name_, mesh_, coeffs_));
    }
    if (session_->answered() && !every_) {
        return false;
    }
    session_->exchange();
    return true;
}

template <class Type>
std::unique_ptr<neuroscale::closureFlux<Type>>& neuroscaleClosure::fluxOf() {
    if constexpr (std::is_same_v<Type, scalar>) {
        return scalarFlux_;
    } else {
        return vectorFlux_;
    }
}

template <class Type>
void neuroscaleClosure::add(fvMatrix<Type>& eqn) {
    auto& flux = fluxOf<Type>();
    if (ask()) {
        if (!flux) {
            flux.reset(new neuroscale::closureFlux<Type>(*session_, settings_, field_));
        }
        flux->update(eqn.psi());
        reported_ = false;
    }
    flux->addTo(eqn);
}

template <class Type>
void neuroscaleClosure::report(const GeometricField<Type, fvPatchField, volMesh>& field) {
    const auto& flux = fluxOf<Type>();
    if (!flux || !log || reported_) {
        return;
    }
    reported_ = true;
    const auto total = flux->total(field);
    const Type cells = gSum(neuroscale::netFlux(total())());
    Type through = Zero;
    scalar size = 0;
    Info << "neuroscaleClosure " << name_ << ": flux into the domain";
    forAll(mesh_.boundary(), patchi) {
        if (!mesh_.boundary()[patchi].coupled()) {
            const Type patch = gSum(total().boundaryField()[patchi]);
            through += patch;
            size += gSumMag(total().boundaryField()[patchi]);
            Info << ", " << mesh_.boundary()[patchi].name() << " " << patch;
        }
    }
    Info << "; all cells " << cells << ", relative difference " << mag(cells - through) / max(size, VSMALL) << endl;
}

void neuroscaleClosure::checkApplied() const {
    if (!applied_[0]) {
        FatalIOErrorInFunction(coeffs_) << "neuroscaleClosure " << name_ << ": the solver has no equation of a field "
                                        << field_ << " that reads fvOptions; it has the scalar fields "
                                        << mesh_.names<volScalarField>() << " and the vector fields "
                                        << mesh_.names<volVectorField>() << exit(FatalIOError);
    }
}

void neuroscaleClosure::addSup(fvMatrix<scalar>& eqn, const label) {
    add(eqn);
}

void neuroscaleClosure::addSup(fvMatrix<vector>& eqn, const label) {
    add(eqn);
}

void neuroscaleClosure::addSup(const volScalarField&, fvMatrix<scalar>& eqn, const label) {
    add(eqn);
}

void neuroscaleClosure::addSup(const volScalarField&, fvMatrix<vector>& eqn, const label) {
    add(eqn);
}

void neuroscaleClosure::correct(volScalarField& field) {
    report(field);
}

void neuroscaleClosure::correct(volVectorField& field) {
    report(field);
}

} // namespace fv
} // namespace Foam
