#!/usr/bin/env bash
# Creates the Python environment that this project is tested with, unless it exists.
#
#     [VENV=.venv] [PYTHON=python3] tools/install.sh
#
# VENV is the folder of the virtual environment, PYTHON the interpreter to create it with. If neither is set, an active
# virtualenv or conda environment with a working OpenMMLab stack is used unchanged. The only line on stdout is the path
# of the interpreter to use; all other output goes to stderr, and pip's to $VENV/install.log. MAX_JOBS=n compiles n
# files of mmcv at a time. The exit code is 2 if a prerequisite is missing and 1 if an installation fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
venv=${VENV:-.venv}
[[ $venv == /* ]] || venv=$PWD/$venv
log=$venv/install.log
stamp=$venv/pvt_mm.installed
mmcv=$(sed -n 's/^onedl-mmcv==//p' requirements/mmcv.txt)
job=

say() { printf '%s\n' "$*" >&2; }

fail() {
    say "install: $*"
    exit 2
}

elapsed() {
    local seconds=$((SECONDS - $1))
    if ((seconds < 60)); then echo "$seconds s"; else echo "$((seconds / 60)) min $((seconds % 60)) s"; fi
}

stack_works() {  # INTERPRETER
    "$1" -c '
import importlib.util, sys
assert sys.version_info >= (3, 10) and all(map(importlib.util.find_spec, ["torch", "mmengine", "mmcv", "mmdet", "mmseg"]))
import torch, mmengine, mmcv.ops, mmdet, mmseg'
}

identity() {  # INTERPRETER: equal for a virtual environment and the Python it was created with
    "$1" -c 'import sys; print(sys.version_info[:2], sys.base_prefix)'
}

wanted() {  # the text of the stamp file: nothing needs to be installed while it is the same
    pwd -P
    cat requirements/*.txt pyproject.toml setup.py
}

installed() { [[ -x $venv/bin/python && -f $stamp ]] && wanted | cmp -s - "$stamp"; }

finish() {
    echo "$venv/bin/python"
    exit
}

check_python() {
    command -v "$python" > /dev/null ||
        fail "no Python '$python': install Python 3.10 to 3.13, or set PYTHON= to one"
    local version
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null) ||
        fail "Python '$python' does not run: install Python 3.10 to 3.13, or set PYTHON= to one"
    [[ $version =~ ^3\.1[0-3]$ ]] ||
        fail "'$python' is Python $version, and requirements/ supports 3.10 to 3.13: install one and set PYTHON= to it"
    "$python" -c 'import ensurepip, venv' 2> /dev/null ||
        fail "'$python' lacks the modules venv and ensurepip: install them (python3-venv on Debian), or set PYTHON="
}

mmcv_is_built() {  # installed in the environment, or in pip's wheel cache for this Python
    compgen -G "$venv/lib/python*/site-packages/onedl_mmcv-$mmcv.dist-info" > /dev/null && return
    local tag
    tag=$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
    "$python" -m pip cache list onedl_mmcv 2> /dev/null | grep -q "onedl_mmcv-$mmcv-$tag-"
}

check_compiler() {
    local compiler header
    for compiler in ${CXX:+"${CXX%% *}"} c++ g++ clang++; do
        command -v "$compiler" > /dev/null && break
        compiler=
    done
    [[ $compiler ]] || fail "no C++ compiler to build mmcv with: install one (g++ on Debian), or set CXX= to it"
    [[ ${CXX:-} || $compiler == c++ ]] || export CXX=$compiler  # PyTorch only looks for c++
    header=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h
    [[ -f $header ]] || fail "no $header to build mmcv with: install Python's headers (python3-dev on Debian)"
}

check_cuda() {
    "$venv/bin/python" -c '
import sys, torch
from torch.utils.cpp_extension import CUDA_HOME
sys.exit(torch.cuda.is_available() and CUDA_HOME is None)' 2> /dev/null ||
        fail "a GPU but no CUDA toolkit (nvcc) to build mmcv with: install one, or set CUDA_VISIBLE_DEVICES="
}

progress() {  # TITLE START OFFSET: one line, with ninja's last "[3/155]" after OFFSET in the log
    local files
    files=$(tail -c "+$3" "$log" | grep -ao '^ *\[[0-9]*/[0-9]*\]' | tail -n 1 | tr -d ' []') || true
    echo "  $1: $(elapsed "$2")${files:+, file ${files/\// of }}"
}

step() {  # TITLE COMMAND...: runs it with its output in the log, and shows the time elapsed
    local title=$1 start=$SECONDS status=0 shown=0 offset
    shift
    printf '\n== %s: %s\n' "$title" "$*" >> "$log"
    offset=$(($(wc -c < "$log") + 1))
    set -m  # in a separate process group, so that an interrupt also ends the compilers
    "$@" >> "$log" 2>&1 < /dev/null &
    job=$!
    set +m
    while kill -0 "$job" 2> /dev/null; do
        sleep 0.5
        if [[ -t 2 ]]; then
            printf '\r\033[K%s' "$(progress "$title" "$start" "$offset")" >&2
        elif ((SECONDS - start - shown >= 30)); then
            shown=$((SECONDS - start))
            progress "$title" "$start" "$offset" >&2
        fi
    done
    wait "$job" || status=$?
    job=
    if [[ -t 2 ]]; then printf '\r\033[K' >&2; fi
    if ((status)); then
        say "install: $title failed after $(elapsed "$start"). First errors and last lines of $log:"
        tail -c "+$offset" "$log" | grep -a 'error: ' | grep -av subprocess-exited | head -n 3 >&2 || true
        echo ... >&2
        tail -n 20 "$log" >&2
        exit 1
    fi
    say "  $title: done in $(elapsed "$start")"
}

interrupted() {  # SIGNAL CODE
    if [[ $job ]]; then
        kill -s "$1" -- "-$job" 2> /dev/null || true
        wait "$job" 2> /dev/null || true
    fi
    if [[ -t 2 ]]; then echo >&2; fi
    say "install: interrupted; run the same command to continue"
    exit "$2"
}

pip() { "$venv/bin/python" -m pip "$@" --no-input --disable-pip-version-check --progress-bar off; }

install_mmcv() { MMCV_WITH_OPS=1 step mmcv pip install -v --no-build-isolation --no-deps -r requirements/mmcv.txt "$@"; }

active=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
if [[ -z ${VENV:-}${PYTHON:-} && $active && ! $active -ef $venv ]]; then
    if stack_works "$active/bin/python" > /dev/null 2>&1; then
        say "Using the active environment, $active."
        echo "$active/bin/python"
        exit
    fi
    say "The active environment, $active, lacks a working torch, mmengine, mmcv, mmdet or mmseg: using $venv."
fi

if [[ ${PYTHON:-} ]]; then
    check_python
    if [[ -x $venv/bin/python && $(identity "$python") != $(identity "$venv/bin/python") ]]; then
        fail "$venv was created with another Python than '$python': delete it, or set VENV= to another folder"
    fi
fi
if installed; then finish; fi
if [[ -d $venv && ! -f $venv/pyvenv.cfg && $(ls -A "$venv") ]]; then
    fail "VENV='$venv' exists and is no virtual environment: set VENV= to another folder"
fi

check_python
compile=
if mmcv_is_built; then
    duration='mmcv is already compiled, so this takes a few minutes.'
else
    check_compiler
    compile=yes
    duration='Compiling mmcv takes about 15 minutes on two cores. pip caches the wheel, so this happens once.'
fi
say "Setting up $venv with the versions in requirements/: torch, mmcv with its operators, mmengine, mmdet, mmseg"
say "and the packages for the tests."
say "$duration"

trap 'interrupted INT 130' INT
trap 'interrupted TERM 143' TERM HUP
begin=$SECONDS
unset PYTHONPATH  # pip would see packages outside the environment
[[ -x $venv/bin/python ]] && "$venv/bin/python" -m pip --version > /dev/null 2>&1 || "$python" -m venv "$venv"
if command -v flock > /dev/null; then
    exec 9> "$venv/install.lock"
    flock -n 9 || { say "  waiting for another installation into $venv"; flock 9; }
    if installed; then finish; fi
fi
rm -f "$stamp"
: > "$log"

step torch pip install -r requirements/torch.txt -r requirements/build.txt -c requirements/constraints.txt
if [[ $compile ]]; then check_cuda; fi
install_mmcv
step 'other packages' pip install -r requirements/onedl.txt -r requirements/tests.txt -c requirements/constraints.txt
if [[ ! $compile ]] && ! "$venv/bin/python" -c 'import mmcv.ops' >> "$log" 2>&1; then
    say "  mmcv was compiled for another PyTorch and is recompiled: about 15 minutes on two cores."
    check_compiler
    check_cuda
    pip cache remove onedl_mmcv >> "$log" 2>&1 || true
    install_mmcv --force-reinstall
fi
step pvt_mm pip install --no-build-isolation --no-deps -e .
step 'import test' stack_works "$venv/bin/python"

wanted > "$stamp.part"
mv "$stamp.part" "$stamp"
say "Set up in $(elapsed "$begin")."
finish
