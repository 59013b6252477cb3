#!/usr/bin/env bash
# Install IBM's aihwkit in an environment of its own: install_aihwkit.sh FOLDER PYTHON CONSTRAINTS
#
# A wheel is bound to the torch that it was built with: on another it may import, and fail when a layer is made. Then the
# source is built against the torch at hand (about eight minutes). Where that cannot be done, one line says why.
set -uo pipefail

folder=$1 python=$2 constraints=$3
peer=$folder/bin/python
log=$folder/install.log

works() {
    "$peer" -c 'import torch; from aihwkit.nn import AnalogLinear; AnalogLinear(4, 3)(torch.ones(1, 4))' &>/dev/null
}

pip_install() {
    "$peer" -m pip install --disable-pip-version-check -c "$constraints" "$@" >>"$log" 2>&1
}

missing() {
    local headers
    headers=$("$peer" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    command -v c++ >/dev/null || echo "a C++ compiler (g++)"
    [[ -f $headers/Python.h ]] || echo "the headers of Python (python3-dev)"
    echo '#include <cblas.h>' | c++ -E -I/usr/include/openblas - &>/dev/null ||
        echo "the headers of OpenBLAS (libopenblas-dev)"
}

give_up() {
    echo "aihwkit was not installed, there is nothing to compare with: $1"
    exit 1
}

give_up_on_pip() {
    give_up "$(grep -iE '^ *error' "$log" | tail -n 1) (all of it is in $log)"
}

works && exit
"$python" -m venv "$folder" || give_up "no environment could be made in $folder"
export PATH=$(cd "$folder/bin" && pwd):$PATH  # where the build finds the stubgen of mypy
: >"$log"
echo "installing aihwkit in $folder"
pip_install torch numpy || give_up_on_pip
pip_install --only-binary aihwkit aihwkit && works && exit
"$peer" -m pip uninstall --quiet --yes aihwkit >>"$log" 2>&1

if [[ -n $(missing) && $EUID -eq 0 ]] && command -v apt-get >/dev/null; then
    { apt-get update && apt-get install -y --no-install-recommends g++ python3-dev libopenblas-dev; } >>"$log" 2>&1
fi
[[ -z $(missing) ]] || give_up "building it needs $(missing | paste -sd, | sed 's/,/, /g')"
echo "no wheel of aihwkit works with this torch: building it from source"
pip_install setuptools wheel scikit-build pybind11 ninja cmake mypy || give_up_on_pip
pip_install --no-build-isolation --no-binary aihwkit aihwkit || give_up_on_pip
works || give_up "it was built, and fails when a layer is made"
