# Sourced by the front-door scripts: leaves a shell with the project's virtual environment active and all packages installed.
#
#   MEGAMESH_VENV   where the environment lives (default: .venv in the repository)
#   PYTHON          the interpreter that makes it (default: python3; 3.11 or newer)
#   MEGAMESH_EXTRAS what to install beside the core (default: hf,plot,data,dev; see setup.py)
#
# Installation is skipped when neither setup.py nor .constraints.txt has changed since the last one.

megamesh_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
megamesh_venv="${MEGAMESH_VENV:-$megamesh_root/.venv}"
megamesh_extras="${MEGAMESH_EXTRAS:-hf,plot,data,dev}"

megamesh_install() {
    local wanted stamp="$megamesh_venv/.megamesh-installed-$megamesh_extras"
    wanted="$(cat "$megamesh_root/setup.py" "$megamesh_root/.constraints.txt" "$megamesh_root/tools/environment.sh" | cksum) $megamesh_root"
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
        return
    fi
    echo "Installing into $megamesh_venv (a few minutes, once)"
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "MegaMesh needs Python 3.11 or newer")'
    [ -x "$megamesh_venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$megamesh_venv"
    local pip=("$megamesh_venv/bin/python" -m pip --disable-pip-version-check install --quiet --constraint "$megamesh_root/.constraints.txt")
    "${pip[@]}" torch numpy setuptools wheel # first and alone: DeepSpeed's own set-up looks for torch
    "${pip[@]}" --editable "$megamesh_root[$megamesh_extras]"
    "${pip[@]}" --no-deps megatron-core # its data reader is an oracle in the tests; its many dependencies are not needed
    echo "$wanted" >"$stamp"
}

megamesh_install
. "$megamesh_venv/bin/activate"
