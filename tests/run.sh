#!/usr/bin/env bash
# Everything that must hold before a change lands: style, types, import order, tests. Sets itself up on a fresh machine.
#
#   bash tests/run.sh                    all of it
#   bash tests/run.sh tests/model -k mesh    only these tests, with pytest's own arguments
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
MEGAMESH_EXTRAS=hf,plot,data,mpi,dev,eval . tools/environment.sh

if [ $# -eq 0 ]; then
    ruff check .
    ruff format --check .
    mypy
    lint-imports
fi
exec python -m pytest "$@"
