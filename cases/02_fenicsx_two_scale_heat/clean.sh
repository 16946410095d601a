#!/bin/sh
# Remove the results and the training data; the model stays.
set -eu
cd "$(dirname "$0")"
rm -rf runs training_data __pycache__ precice-run precice-profiling precice-*-*.log
