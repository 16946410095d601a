#!/bin/sh
# The fine-only run, the gated run, their comparison. More options go to `neuroscale-couple run`, e.g. ./run.sh --cold
set -eu
cd "$(dirname "$0")"
exec neuroscale-couple run neuroscale.yaml --compare "$@"
