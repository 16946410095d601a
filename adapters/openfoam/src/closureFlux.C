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

/// A number of the tangent d s_ij / d g_lj that goes into the block of the component j of the field.
struct tangentEntry {
    std::size_t at; ///< among the tangent's numbers of a point
    direction i;
    direction l;
    double weight;
};

/// What of the tangent goes into the block of component j; components is 1 for a scalar equation, 3 for a vector's.
static std::vector<tangentEntry> blockOf(const closureSession& session, const word& field, std::size_t j,
                                         std::size_t components) {
    std::vector<tangentEntry> result;
    const std::size_t inputs = static_cast<std::size_t>(session.inputColumns());
    std::size_t column = 0;
    const auto append = [&](const closureColumn& input) {
        for (const target& t : targetsOf(session.outputColumns())) {
            for (std::size_t l = 0; l < 3; ++l) {
                const double weight = input.weight[l * components + j];
                if (t.component % components == j && weight != 0.0) {
                    result.push_back(
                        {t.column * inputs + column, direction(t.component / components), direction(l), weight});
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

/// The tangent along a direction: n . block . n. tangent: the numbers of a point
static scalar along(const std::vector<tangentEntry>& block, const double* tangent, const vector& n) {
    scalar sum = 0;
    for (const tangentEntry& entry : block) {
        sum += entry.weight * tangent[entry.at] * n[entry.i] * n[entry.l];
    }
    return sum;
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
    bool first = true;
    for (std::size_t j = 0; settings_.implicit && j < pTraits<Type>::nComponents; ++j) {
        const std::vector<tangentEntry> block = blockOf(session_, field_, j, pTraits<Type>::nComponents);
        if (block.empty()) {
            continue; // a direction that the problem does not have
        }
        // the least of the components: what all of them have in common
        lowerDiffusivity(block, first);
        first = false;
    }
    diffusivity_ = max(diffusivity_, dimensionedScalar("0", dimless, 0));
    closePatches(diffusivity_);
}

/// Set K to the tangent of one component along the normals, interpolated, where that is lower. first: in any case
template <class Type>
void closureFlux<Type>::lowerDiffusivity(const std::vector<tangentEntry>& block, bool first) {
    const double* const tangent = session_.reply().tangent.data();
    const std::size_t width = session_.outputColumns().size() * static_cast<std::size_t>(session_.inputColumns());
    const auto of = [&](std::size_t point, const vector& area, scalar size) {
        return settings_.factor * along(block, tangent + point * width, area / size);
    };
    const auto lower = [first](scalar& k, scalar value) { k = first ? value : Foam::min(k, value); };
    const surfaceVectorField& area = mesh_.Sf();
    const surfaceScalarField& size = mesh_.magSf();
    const surfaceScalarField& weight = mesh_.weights();
    const labelUList& owner = mesh_.owner();
    const labelUList& neighbour = mesh_.neighbour();
    scalarField& inside = diffusivity_.primitiveFieldRef();
    forAll(inside, face) {
        const scalar mine = of(static_cast<std::size_t>(owner[face]), area[face], size[face]);
        const scalar other = of(static_cast<std::size_t>(neighbour[face]), area[face], size[face]);
        lower(inside[face], weight[face] * mine + (1 - weight[face]) * other);
    }
    session_.points().forPatches([&](const fvPatch& patch, std::size_t point) {
        scalarField& faces = diffusivity_.boundaryFieldRef()[patch.index()];
        forAll(faces, i) {
            lower(faces[i], of(point + static_cast<std::size_t>(i), patch.Sf()[i], patch.magSf()[i]));
        }
    });
    bool parts = Pstream::parRun();
    for (const fvPatch& patch : mesh_.boundary()) {
        parts = parts || patch.coupled();
    }
    if (parts) {
        lowerBetweenParts(block, first);
    }
}

/// As lowerDiffusivity, on coupled patches: the tangents of the cells of both sides. Collective.
template <class Type>
void closureFlux<Type>::lowerBetweenParts(const std::vector<tangentEntry>& block, bool first) {
    const double* const tangent = session_.reply().tangent.data();
    const std::size_t width = session_.outputColumns().size() * static_cast<std::size_t>(session_.inputColumns());
    tmp<volTensorField> work = zeroCells<tensor>(mesh_, "closureTangent");
    setAll(work.ref(), session_.points(), [&](std::size_t point) {
        tensor value(Zero);
        for (const tangentEntry& entry : block) {
            value[direction(3 * entry.i + entry.l)] +=
                settings_.factor * entry.weight * tangent[point * width + entry.at];
        }
        return value;
    });
    for (const fvPatch& patch : mesh_.boundary()) {
        if (!patch.coupled()) {
            continue;
        }
        const fvPatchField<tensor>& here = work().boundaryField()[patch.index()];
        const vectorField n(patch.nf());
        const scalarField& weight = mesh_.weights().boundaryField()[patch.index()];
        const scalarField found(weight * (n & (here.patchInternalField() & n)) +
                                (1 - weight) * (n & (here.patchNeighbourField() & n)));
        scalarField& faces = diffusivity_.boundaryFieldRef()[patch.index()];
        forAll(faces, i) {
            faces[i] = first ? found[i] : Foam::min(faces[i], found[i]);
        }
    }
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

/// As gradientFlux, with the difference that the interpolated gradient of the cells gives; for faces between cells.
template <class Type>
tmp<typename closureFlux<Type>::FaceField> closureFlux<Type>::meanGradientFlux(const VolField& field) const {
    if (!delta_ || mesh_.moving()) {
        delta_.reset(mesh_.delta().ptr());
    }
    const FluxField* known = session_.template gradientOf<FluxField>(field_);
    const tmp<FluxField> gradient(known ? tmp<FluxField>(*known) : fvc::grad(field));
    tmp<FaceField> result = linear<FluxType>(mesh_).dotInterpolate(*delta_, gradient());
    FaceField& flux = result.ref();
    const surfaceScalarField& distance = mesh_.nonOrthDeltaCoeffs();
    flux.primitiveFieldRef() *=
        diffusivity_.primitiveField() * mesh_.magSf().primitiveField() * distance.primitiveField();
    forAll(mesh_.boundary(), patchi) {
        const fvPatch& patch = mesh_.boundary()[patchi];
        if (patch.coupled()) {
            flux.boundaryFieldRef()[patchi] *=
                diffusivity_.boundaryField()[patchi] * patch.magSf() * distance.boundaryField()[patchi];
        }
    }
    return result;
}

template <class Type>
void closureFlux<Type>::update(const VolField& field) {
    tmp<FluxField> flux = zeroCells<FluxType>(mesh_, "closureFlux");
    setFlux(flux.ref());
    setDiffusivity();
    explicit_.reset(linear<FluxType>(mesh_).dotInterpolate(mesh_.Sf(), flux()).ptr());
    FaceField& faces = *explicit_;
    const tmp<FaceField> implicit = settings_.compact ? meanGradientFlux(field) : gradientFlux(field);
    faces.primitiveFieldRef() -= implicit().primitiveField();
    forAll(mesh_.boundary(), patchi) {
        if (mesh_.boundary()[patchi].coupled()) {
            faces.boundaryFieldRef()[patchi] -= implicit().boundaryField()[patchi];
        } else {
            faces.boundaryFieldRef()[patchi] -= diffusivity_.boundaryField()[patchi] *
                                                mesh_.magSf().boundaryField()[patchi] *
                                                field.boundaryField()[patchi].snGrad();
        }
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
