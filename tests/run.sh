#!/usr/bin/env bash
# Everything that must hold before a change lands: style, types, import order, tests. Sets itself up on a fresh machine.
#
#   bash tests/run.sh                        all of it
#   bash tests/run.sh --thorough             all of it, with more of what is done at random
#   bash tests/run.sh --fast                 in three minutes: style, types, import order, quick tests, a run of each axis (tests/fast.py)
#   bash tests/run.sh tests/model -k mesh    only these tests, with pytest's own arguments
#
# The whole suite is two pytest processes at a time, a file of tests in each (pytest-xdist); types and import order are checked
# beside them. Processes that tests start are forked from servers (tests/processes.py), so that none imports torch again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
MEGAMESH_EXTRAS=hf,plot,data,mpi,dev,eval . tools/environment.sh

case "$*" in
    "" | --fast | --thorough) ;;
    *) exec python -m pytest "$@" ;;
esac
ruff check .
ruff format --check .
checked="$(mktemp)"
trap 'rm -f "$checked"' EXIT
(mypy && lint-imports) >"$checked" 2>&1 &
checks=$!
status=0
python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder "$@" || status=$?
wait "$checks" || status=1
cat "$checked"
exit "$status"
