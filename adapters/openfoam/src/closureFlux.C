// SPDX-License-Identifier: GPL-3.0-or-later
// Copyright (C) 2026 the neuroscale-couple authors
//
// This file is part of the OpenFOAM adapter of neuroscale-couple: free software under the terms of the GNU General
// Public License as published by the Free Software Foundation, either version 3 of the License, or (at your option) any
// later version. It comes without any warranty. See ../LICENSE.

#include "closureFlux.H"

#include "fvcGrad.H"
#include "linear.H"
#include "uncorrectedSnGrad.H"

#include <algorithm>

namespace Foam {
namespace neuroscale {

namespace {

/// Where an output column goes among the components of the flux. A stress that names xy alone is symmetric.
struct target {
    std::size_t column;
    std::size_t component;
};

std::vector<target> targetsOf(const std::vector<closureColumn>& columns) {
    std::vector<target> result;
    const auto has = [&columns](std::size_t component) {
        return std::any_of(columns.begin(), columns.end(),
                           [component](const closureColumn& c) { return c.weight[component] != 0.0; });
    };
    for (std::size_t column = 0; column < columns.size(); ++column) {
        for (std::size_t k = 0; k < 9; ++k) {
            if (columns[column].weight[k] == 0.0) {
                continue;
            }
            result.push_back({column, k});
            const std::size_t mirrored = 3 * (k % 3) + k / 3;
            if (columns[column].name.size() == 2 && mirrored != k && !has(mirrored)) {
                result.push_back({column, mirrored});
            }
        }
    }
    return result;
}

/// Set cells and boundary faces of a field to value(point).
template <class Type, class Value>
void setAll(GeometricField<Type, fvPatchField, volMesh>& field, const closurePoints& points, const Value& value) {
    Field<Type>& cells = field.primitiveFieldRef();
    forAll(cells, i) {
        cells[i] = value(static_cast<std::size_t>(i));
    }
    points.forPatches([&](const fvPatch& patch, std::size_t first) {
        Field<Type>& faces = field.boundaryFieldRef()[patch.index()];
        forAll(faces, i) {
            faces[i] = value(first + static_cast<std::size_t>(i));
        }
    });
    field.correctBoundaryConditions(); // the values beyond coupled patches
}

template <class Field>
tmp<Field> zeroOn(const fvMesh& mesh, const word& name) {
    const IOobject io(name, mesh.time().timeName(), mesh, IOobject::NO_READ, IOobject::NO_WRITE, false);
    return tmp<Field>(new Field(io, mesh, dimensioned<typename Field::value_type>("0", dimless, Zero)));
}

template <class Type>
tmp<GeometricField<Type, fvPatchField, volMesh>> zeroCells(const fvMesh& mesh, const word& name) {
    return zeroOn<GeometricField<Type, fvPatchField, volMesh>>(mesh, name);
}

template <class Type>
tmp<GeometricField<Type, fvsPatchField, surfaceMesh>> zeroFaces(const fvMesh& mesh, const word& name) {
    return zeroOn<GeometricField<Type, fvsPatchField, surfaceMesh>>(mesh, name);
}

} // namespace

template <class Type>
closureFlux<Type>::closureFlux(const closureSession& session, const fluxSettings& settings, const word& field)
    : mesh_(session.points().mesh()), session_(session), settings_(settings), field_(field),
      diffusivity_(zeroFaces<scalar>(mesh_, "closureDiffusivity")) {}

template <class Type>
void closureFlux<Type>::setFlux(FluxField& flux) const {
    const std::vector<target> targets = targetsOf(session_.outputColumns());
    const std::vector<double>& output = session_.reply().output;
    const std::size_t width = session_.outputColumns().size();
    const scalar factor = settings_.factor;
    setAll(flux, session_.points(), [&](std::size_t point) {
        FluxType value(Zero);
        for (const target& t : targets) {
            value[static_cast<direction>(t.component)] = factor * output[point * width + t.column];
        }
        return value;
    });
}

/// One block of d flux / d gradient: for a vector equation that of the component j of the field, [i][l] = d s_ij / d
/// g_lj.
struct tangentBlock {
    std::size_t row;
    std::size_t column;
    direction entry; ///< of the tensor [i][l]
    double weight;
};

/// What of the tangent goes into the block of component j; components is 1 for a scalar equation, 3 for a vector's.
static std::vector<tangentBlock> blockOf(const closureSession& session, const word& field, std::size_t j,
                                         std::size_t components) {
    std::vector<tangentBlock> result;
    std::size_t column = 0;
    const auto append = [&](const closureColumn& input) {
        for (const target& t : targetsOf(session.outputColumns())) {
            for (std::size_t l = 0; l < 3; ++l) {
                const double weight = input.weight[l * components + j];
                if (t.component % components == j && weight != 0.0) {
                    result.push_back({t.column, column, direction(3 * (t.component / components) + l), weight});
                }
            }
        }
    };
    for (const auto& input : session.inputs()) {
        for (const closureColumn& c : input->columns()) {
            if (input->isGradientOf(field)) {
                append(c);
            }
            ++column;
        }
    }
    return result;
}

template <class Type>
template <class Faces>
void closureFlux<Type>::closePatches(Faces& faces) const {
    forAll(mesh_.boundary(), patchi) {
        if (settings_.noFlux.match(mesh_.boundary()[patchi].name())) {
            faces.boundaryFieldRef()[patchi] = Zero;
        }
    }
}

template <class Type>
void closureFlux<Type>::setDiffusivity() {
    diffusivity_ == dimensionedScalar("0", dimless, 0);
    if (!settings_.implicit) {
        return;
    }
    const std::size_t components = pTraits<Type>::nComponents;
    const std::size_t inputs = static_cast<std::size_t>(session_.inputColumns());
    const std::size_t width = session_.outputColumns().size() * inputs;
    const std::vector<double>& tangent = session_.reply().tangent;
    const surfaceVectorField n(mesh_.Sf() / mesh_.magSf());
    tmp<volTensorField> work = zeroCells<tensor>(mesh_, "closureTangent");
    bool first = true;
    for (std::size_t j = 0; j < components; ++j) {
        const std::vector<tangentBlock> block = blockOf(session_, field_, j, components);
        if (block.empty()) {
            continue; // a direction that the problem does not have
        }
        setAll(work.ref(), session_.points(), [&](std::size_t point) {
            tensor value(Zero);
            for (const tangentBlock& b : block) {
                value[b.entry] += settings_.factor * b.weight * tangent[point * width + b.row * inputs + b.column];
            }
            return value;
        });
        const surfaceScalarField along(n & (linear<tensor>(mesh_).interpolate(work()) & n));
        // the least of the components: what all of them have in common
        if (first) {
            diffusivity_ = along;
        } else {
            diffusivity_ = min(diffusivity_, along);
        }
        first = false;
    }
    diffusivity_ = max(diffusivity_, dimensionedScalar("0", dimless, 0));
    closePatches(diffusivity_);
}

/// K |S| times the difference of the field over each face: the implicit part at a given field.
template <class Type>
tmp<typename closureFlux<Type>::FaceField> closureFlux<Type>::gradientFlux(const VolField& field) const {
    const fv::uncorrectedSnGrad<Type> scheme(mesh_);
    const tmp<FaceField> gradient = scheme.snGrad(field);
    tmp<FaceField> result = zeroFaces<Type>(mesh_, "closureGradientFlux");
    FaceField& flux = result.ref();
    flux.primitiveFieldRef() =
        diffusivity_.primitiveField() * mesh_.magSf().primitiveField() * gradient().primitiveField();
    forAll(flux.boundaryField(), patchi) {
        flux.boundaryFieldRef()[patchi] = diffusivity_.boundaryField()[patchi] * mesh_.magSf().boundaryField()[patchi] *
                                          gradient().boundaryField()[patchi];
    }
    return result;
}

/// As gradientFlux, with the difference that the interpolated gradient of the cells gives; 0 on boundary faces.
template <class Type>
tmp<typename closureFlux<Type>::FaceField> closureFlux<Type>::meanGradientFlux(const VolField& field) const {
    const auto gradient = linear<FluxType>(mesh_).interpolate(fvc::grad(field));
    tmp<FaceField> result = zeroFaces<Type>(mesh_, "closureMeanGradientFlux");
    FaceField& flux = result.ref();
    const vectorField& centres = mesh_.C().primitiveField();
    const labelUList& owner = mesh_.owner();
    const labelUList& neighbour = mesh_.neighbour();
    const scalarField scale(diffusivity_.primitiveField() * mesh_.magSf().primitiveField() *
                            mesh_.nonOrthDeltaCoeffs().primitiveField());
    Field<Type>& inside = flux.primitiveFieldRef();
    forAll(inside, face) {
        inside[face] = scale[face] * ((centres[neighbour[face]] - centres[owner[face]]) & gradient()[face]);
    }
    forAll(mesh_.boundary(), patchi) {
        const fvPatch& patch = mesh_.boundary()[patchi];
        if (patch.coupled()) {
            flux.boundaryFieldRef()[patchi] = diffusivity_.boundaryField()[patchi] * patch.magSf() *
                                              mesh_.nonOrthDeltaCoeffs().boundaryField()[patchi] *
                                              (patch.delta() & gradient().boundaryField()[patchi]);
        }
    }
    return result;
}

template <class Type>
void closureFlux<Type>::update(const VolField& field) {
    tmp<FluxField> flux = zeroCells<FluxType>(mesh_, "closureFlux");
    setFlux(flux.ref());
    setDiffusivity();
    const auto atFaces = linear<FluxType>(mesh_).interpolate(flux());
    explicit_.reset(zeroFaces<Type>(mesh_, "closureExplicit").ptr());
    FaceField& faces = *explicit_;
    faces.primitiveFieldRef() = mesh_.Sf().primitiveField() & atFaces().primitiveField();
    const tmp<FaceField> mean = meanGradientFlux(field);
    const tmp<FaceField> sharp = gradientFlux(field);
    faces.primitiveFieldRef() -= settings_.compact ? mean().primitiveField() : sharp().primitiveField();
    forAll(mesh_.boundary(), patchi) {
        const fvPatch& patch = mesh_.boundary()[patchi];
        const FaceField& implicit = settings_.compact && patch.coupled() ? mean() : sharp();
        faces.boundaryFieldRef()[patchi] =
            (patch.Sf() & atFaces().boundaryField()[patchi]) - implicit.boundaryField()[patchi];
    }
    closePatches(faces);
}

template <class Type>
void closureFlux<Type>::addTo(fvMatrix<Type>& eqn) const {
    const VolField& field = eqn.psi();
    fvMatrix<Type> closure(field, eqn.dimensions());
    closure.upper() =
        diffusivity_.primitiveField() * mesh_.magSf().primitiveField() * mesh_.nonOrthDeltaCoeffs().primitiveField();
    closure.negSumDiag();
    forAll(field.boundaryField(), patchi) {
        const fvPatchField<Type>& patch = field.boundaryField()[patchi];
        const scalarField scale(diffusivity_.boundaryField()[patchi] * mesh_.magSf().boundaryField()[patchi]);
        if (patch.coupled()) {
            const scalarField& delta = mesh_.nonOrthDeltaCoeffs().boundaryField()[patchi];
            closure.internalCoeffs()[patchi] = scale * patch.gradientInternalCoeffs(delta);
            closure.boundaryCoeffs()[patchi] = -scale * patch.gradientBoundaryCoeffs(delta);
        } else {
            closure.internalCoeffs()[patchi] = scale * patch.gradientInternalCoeffs();
            closure.boundaryCoeffs()[patchi] = -scale * patch.gradientBoundaryCoeffs();
        }
    }
    closure.source() -= netFlux(*explicit_)();
    eqn += closure;
}

template <class Type>
tmp<typename closureFlux<Type>::FaceField> closureFlux<Type>::total(const VolField& field) const {
    tmp<FaceField> result = gradientFlux(field);
    FaceField& faces = result.ref();
    faces.primitiveFieldRef() += explicit_->primitiveField();
    forAll(faces.boundaryField(), patchi) {
        faces.boundaryFieldRef()[patchi] += explicit_->boundaryField()[patchi];
    }
    return result;
}

template <class Type>
tmp<Field<Type>> netFlux(const GeometricField<Type, fvsPatchField, surfaceMesh>& flux) {
    const fvMesh& mesh = flux.mesh();
    tmp<Field<Type>> result(new Field<Type>(mesh.nCells(), Zero));
    Field<Type>& net = result.ref();
    const labelUList& owner = mesh.owner();
    const labelUList& neighbour = mesh.neighbour();
    forAll(neighbour, face) {
        net[owner[face]] += flux[face];
        net[neighbour[face]] -= flux[face];
    }
    forAll(mesh.boundary(), patchi) {
        const labelUList& cells = mesh.boundary()[patchi].faceCells();
        forAll(cells, i) {
            net[cells[i]] += flux.boundaryField()[patchi][i];
        }
    }
    return result;
}

template class closureFlux<scalar>;
template class closureFlux<vector>;
template tmp<scalarField> netFlux(const surfaceScalarField&);
template tmp<vectorField> netFlux(const surfaceVectorField&);

} // namespace neuroscale
} // namespace Foam
