#!/bin/sh
# The cavity with the closure, and without it at the viscosity that it stands for:   ./run.sh [cells] [ranks]
# Needs OpenFOAM, libneuroscaleFoam.so (adapters/openfoam/build) and neuroscale-couple on the PATH, see docs/openfoam.md.
set -eu
cd "$(dirname "$0")"
cells=${1:-32}
ranks=${2:-1}
neuroscale_repository=../..
. "$neuroscale_repository/adapters/openfoam/environment"
export PYTHONPATH="$PWD:$PYTHONPATH"     # the service finds stress.py in the case's folder
./clean.sh
for case in run reference; do
    mkdir $case
    cp -r 0 constant system neuroscale.yaml $case
    sed -i "s/^cells .*/cells $cells;/" $case/system/blockMeshDict
    sed -i "s/^deltaT .*/deltaT $(awk "BEGIN { print 0.64 / $cells }");/
        s/^writeInterval .*/writeInterval $(awk "BEGIN { print int(2 * $cells / 0.64 + 0.5) }");/" $case/system/controlDict
    blockMesh -case $case >log.blockMesh
    touch $case/$case.foam                      # what ParaView opens
done
rm reference/constant/fvOptions                 # the exact answer: no closure, its viscosity
sed -i '/^functions/,$d; /^libs/d' reference/system/controlDict
sed -i 's/^nu .*/nu 0.02;/' reference/constant/transportProperties
"$neuroscale_repository/adapters/openfoam/check-case" run
if [ "$ranks" = 1 ]; then
    pimpleFoam -case run >log.pimpleFoam
else
    decomposePar -case run >log.decomposePar
    mpirun -n "$ranks" pimpleFoam -case run -parallel >log.pimpleFoam
    reconstructPar -case run >log.reconstructPar
fi
pimpleFoam -case reference >log.reference
python3 compare.py
