#!/bin/sh
# Remove mesh and results.
set -eu
cd "$(dirname "$0")"
rm -rf [1-9]* 0/C 0/Cx 0/Cy 0/Cz 0/structure constant/polyMesh postProcessing processor* runs log.* *.foam __pycache__ *.npz
