#!/bin/sh
# Remove meshes and results.
set -eu
cd "$(dirname "$0")"
rm -rf run reference runs log.* __pycache__
