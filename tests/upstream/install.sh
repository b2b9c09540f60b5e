#!/usr/bin/env bash
# Creates an environment with upstream's OpenMMLab on an older PyTorch, unless it exists: VENV=DIR TORCH=2.1.2 $0
# Compiling mmcv takes about 30 minutes on two cores. The only line on stdout is the path of the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

torch=${TORCH:-2.1.2}
venv=.venv-upstream
[[ $torch == 2.1.2 ]] || venv=.venv-upstream-$torch
venv=${VENV:-$venv}
mmcv=2.1.0
declare -A torchvision=([2.1.2]=0.16.2 [2.4.1]=0.19.1)
[[ ${torchvision[$torch]:-} ]] || { echo "install: TORCH=$torch is not one of ${!torchvision[*]}" >&2; exit 2; }
[[ ! -e $venv/pvt_mm.installed ]] || { echo "install: VENV=$venv is that of make setup; name another folder" >&2; exit 2; }
log=$venv/install.log
stamp=$venv/upstream.installed

pip() { "$venv/bin/python" -m pip "$@" --no-input --disable-pip-version-check -q >> "$log" 2>&1; }

wanted() { echo "torch $torch, mmcv $mmcv"; cat requirements/upstream.txt; }

if ! wanted | cmp -s - "$stamp"; then
    "${PYTHON:-python3}" -m venv "$venv"
    rm -f "$stamp"
    echo "Setting up $venv: torch $torch and upstream's mmcv $mmcv, mmengine, mmdet and mmseg (log: $log)" >&2
    trap 'echo "install: failed; see $log" >&2' ERR
    pip install setuptools==69.5.1 wheel ninja numpy==1.26.4
    pip install "torch==$torch" "torchvision==${torchvision[$torch]}"
    # pip's cache may hold a wheel that was compiled for another torch, and without optimisation it compiles in half the time.
    if ! "$venv/bin/python" -c 'import mmcv.ops' 2> /dev/null; then
        MMCV_WITH_OPS=1 CFLAGS=-O0 pip install --no-cache-dir --no-build-isolation --no-deps --no-binary mmcv "mmcv==$mmcv"
    fi
    pip install -r requirements/upstream.txt
    pip install --no-build-isolation --no-deps -e .
    "$venv/bin/python" -c 'import mmcv.ops, mmengine, mmdet, mmseg' >> "$log" 2>&1
    wanted > "$stamp"
fi
echo "$venv/bin/python"
