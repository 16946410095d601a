#!/bin/sh
# Mesh, micro structures and the run:   ./run.sh [ranks]      default 1
# Needs OpenFOAM, libneuroscaleFoam.so (adapters/openfoam/build) and neuroscale-couple on the PATH, see docs/openfoam.md.
set -eu
cd "$(dirname "$0")"
ranks=${1:-1}
neuroscale_repository=../..
. "$neuroscale_repository/adapters/openfoam/environment"
./clean.sh
blockMesh >log.blockMesh
postProcess -func writeCellCentres -time 0 >log.writeCellCentres
python3 structure.py
"$neuroscale_repository/adapters/openfoam/check-case" .
if [ "$ranks" = 1 ]; then
    laplacianFoam | tee log.laplacianFoam
else
    decomposePar -force >log.decomposePar
    mpirun -n "$ranks" laplacianFoam -parallel | tee log.laplacianFoam
    reconstructPar >log.reconstructPar
fi
touch plate.foam        # what ParaView opens
python3 compare.py
