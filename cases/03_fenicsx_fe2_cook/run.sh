#!/bin/sh
# Two macro ranks and one service rank: the fine-only run, the gated run, their comparison.
# More options go to all, e.g. ./run.sh --out /tmp/runs
set -eu
cd "$(dirname "$0")"
both() {
    mpirun -n 2 neuroscale-couple run neuroscale.yaml --set transport=mpi "$@" : \
        -n 1 neuroscale-couple serve neuroscale.yaml --set transport=mpi "$@"
}
both --fine-only "$@"
both "$@"
exec neuroscale-couple report neuroscale.yaml --set transport=mpi "$@"
