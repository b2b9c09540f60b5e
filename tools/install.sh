#!/usr/bin/env bash
# Creates the Python environment that this project is tested with, unless it exists.
#
#     [VENV=.venv] [PYTHON=python3] [CUDA=auto] tools/install.sh
#
# VENV is the folder of the virtual environment, PYTHON the interpreter to create it with. If neither is set, an active
# virtualenv or conda environment with a working OpenMMLab stack is used unchanged. The only line on stdout is the path
# of the interpreter to use; all other output goes to stderr, and pip's to $VENV/install.log. The exit code is 2 if a
# prerequisite is missing and 1 if an installation fails.
#
# CUDA is auto (PyTorch and mmcv for this machine's GPUs, or for the CPU if it has none), cpu, or a version of
# requirements/torch_builds.py; once given, it is remembered in $VENV. Without a GPU a version also needs
# TORCH_CUDA_ARCH_LIST, the compute capabilities to compile mmcv for. MMCV_INDEX is a folder or page with wheels of
# mmcv, TORCH_INDEX replaces https://download.pytorch.org/whl, and MAX_JOBS=n compiles n files at a time.
# docs/install.md has more.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
venv=${VENV:-.venv}
[[ $venv == /* ]] || venv=$PWD/$venv
log=$venv/install.log
stamp=$venv/pvt_mm.installed
built=$venv/pvt_mm.built  # what CUDA= was, then what was installed
ops=$venv/pvt_mm.ops  # the CUDA version and the GPUs that mmcv was compiled for here
request=${CUDA:-auto}
if [[ -z ${CUDA:-} && -f $built ]]; then read -r request < "$built"; fi
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
    echo "CUDA=$request"
    cat requirements/*.txt requirements/torch_builds.py pyproject.toml setup.py
}

installed() {
    [[ -x $venv/bin/python && -f $stamp ]] && wanted | cmp -s - "$stamp" || return
    [[ ! ${TORCH_CUDA_ARCH_LIST:-} || ! -f $ops || $(cat "$ops") == *" $TORCH_CUDA_ARCH_LIST" ]]
}

finish() {
    if [[ $request == auto ]] && grep -qs 'for the CPU' "$built" && has_gpu; then
        say "This machine has a GPU, but $venv was set up for the CPU: set CUDA= to a version to use the GPU, or to cpu."
    fi
    echo "$venv/bin/python"
    exit
}

has_gpu() { compgen -G '/dev/nvidia[0-9]*' > /dev/null || nvidia-smi -L > /dev/null 2>&1; }

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

# CUDA version of the installed PyTorch, "cpu" for a build without
torch_cuda() { "$venv/bin/python" -c 'import torch; print(torch.version.cuda or "cpu")'; }

refuse_to_guess() {  # WHAT VERSION
    fail "$1 and nvcc is here, but no GPU is visible (a login node?): set CUDA=cpu, or CUDA=$2 and TORCH_CUDA_ARCH_LIST= to" \
        "the compute capabilities of your GPUs, such as 9.0"
}

check_torch() {  # sets `device` to the CUDA version to build mmcv for, or to cpu
    local found
    found=$(torch_cuda 2>> "$log") || fail "the installed torch cannot be imported: see the end of $log"
    device=${cuda:-cpu}
    if [[ $device == cpu ]]; then
        export CUDA_VISIBLE_DEVICES=  # mmcv is also built for CUDA if torch sees a GPU
        unset FORCE_CUDA
        if [[ ! $cuda && $found != cpu && $nvcc ]]; then
            refuse_to_guess "torch is built for CUDA $found" "$found"
        fi
        return
    fi
    [[ $found == "$device" ]] || fail "pip installed a torch for $found instead of CUDA $device: check pip's index"
    local use='import torch; torch.ones(1, device="cuda").sum().item()'
    if [[ $gpus ]] && ! "$venv/bin/python" -c "$use" >> "$log" 2>&1; then
        fail "torch for CUDA $device cannot use the GPU ($gpus): see the end of $log, or set CUDA= to another version"
    fi
    export FORCE_CUDA=1
    if [[ $archs ]]; then export TORCH_CUDA_ARCH_LIST=$archs; fi
}

mmcv_works() {  # and is built for the device; on a GPU, runs the operator that fails in a build for the CPU
    "$venv/bin/python" -c '
import sys, torch, mmcv.ops
cuda = mmcv.ops.get_compiling_cuda_version()
if sys.argv[1] != "cpu":
    assert cuda.split(".")[0] == sys.argv[1].split(".")[0], f"mmcv is built for CUDA {cuda}"
    if torch.cuda.is_available():
        zeros = torch.zeros(1, 1, device="cuda")
        float(mmcv.ops.sigmoid_focal_loss(zeros, zeros[0].long()))' "$device" >> "$log" 2>&1
}

summary() {
    local version cuda_of_mmcv archs arch names=
    read -r version cuda_of_mmcv < <("$venv/bin/python" -c '
import torch, mmcv.ops
print(torch.__version__, mmcv.ops.get_compiling_cuda_version())' 2>> "$log")
    if [[ $device == cpu ]]; then
        echo "torch $version and mmcv $mmcv, for the CPU"
    elif [[ -f $ops ]]; then
        read -r _ archs < "$ops"
        for arch in ${archs//;/ }; do names+=" sm_${arch/./}"; done
        echo "torch $version and mmcv $mmcv with CUDA $cuda_of_mmcv for${names:- the GPUs of this machine}"
    else
        echo "torch $version and mmcv $mmcv with CUDA $cuda_of_mmcv, from $wheels"
    fi
}

progress() {  # TITLE START OFFSET: one line, with ninja's last "[3/155]" after OFFSET in the log
    local files
    files=$(tail -c "+$3" "$log" | grep -ao '^ *\[[0-9]*/[0-9]*\]' | tail -n 1 | tr -d ' []') || true
    echo "  $1: $(elapsed "$2")${files:+, file ${files/\// of }}"
}

attempt() {  # TITLE COMMAND...: runs it with its output in the log, and shows the time elapsed
    local title=$1 start=$SECONDS status=0 shown=0 pause=0.1
    shift
    printf '\n== %s: %s\n' "$title" "$*" >> "$log"
    offset=$(($(wc -c < "$log") + 1))
    set -m  # in a separate process group, so that an interrupt also ends the compilers
    "$@" >> "$log" 2>&1 < /dev/null &
    job=$!
    set +m
    while kill -0 "$job" 2> /dev/null; do
        sleep $pause
        pause=0.5
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
    if ((status)); then return "$status"; fi
    say "  $title: done in $(elapsed "$start")"
}

step() {  # likewise, and ends if the command fails
    local start=$SECONDS
    if ! attempt "$@"; then
        say "install: $1 failed after $(elapsed "$start"). First errors and last lines of $log:"
        tail -c "+$offset" "$log" | grep -a 'error: ' | grep -av subprocess-exited | head -n 3 >&2 || true
        echo ... >&2
        tail -n 20 "$log" >&2
        exit 1
    fi
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

install_torch() {
    local found options=(-r requirements/build.txt -c requirements/constraints.txt)
    if [[ $cuda ]] && found=$(torch_cuda 2> /dev/null) && [[ $found != "$cuda" ]]; then
        say "  replacing torch for $found"
        "$venv/bin/python" -m pip uninstall --yes torch onedl-mmcv >> "$log" 2>&1
    fi
    if [[ ! $cuda && $nvcc ]]; then  # before gigabytes are downloaded; older versions of pip have no --report
        local report=$venv/torch.json
        if attempt 'build of torch' pip install --dry-run --report "$report" "$torch" "${options[@]}" &&
            grep -Eq '"name": "(cuda|nvidia)-' "$report"; then
            refuse_to_guess "pip's $torch is built for CUDA" VERSION
        fi
    fi
    if [[ $cuda == cpu ]]; then  # smaller than PyPI's build for CUDA, which runs on a CPU too
        attempt torch pip install "$torch" "${options[@]}" --extra-index-url "$index" && return
        say "  $index has no $torch, or cannot be reached: using PyPI's."
        torch=${torch%+cpu} index=
    fi
    step torch pip install "$torch" "${options[@]}" ${index:+--extra-index-url "$index"}
}

compile_mmcv() {  # pip caches builds for the CPU only: its cache does not know what a wheel was built for
    if [[ $device != cpu ]]; then
        [[ $nvcc ]] || fail "no nvcc to compile mmcv with: install the toolkit of CUDA $device or load its module"
        [[ -f $ops && $(cat "$ops") == "$device $archs" ]] || set -- --force-reinstall "$@"
        set -- --no-cache-dir "$@"
    fi
    rm -f "$ops"
    MMCV_WITH_OPS=1 step mmcv pip install -v --no-build-isolation --no-deps -r requirements/mmcv.txt "$@"
    if [[ $device != cpu ]]; then echo "$device $archs" > "$ops"; fi
}

install_mmcv() {
    local options=(--no-deps --no-index --only-binary ':all:' --force-reinstall)
    if [[ $wheels ]]; then
        if attempt 'compiled mmcv' pip install -r requirements/mmcv.txt "${options[@]}" --find-links "$wheels"; then
            rm -f "$ops"
            return
        fi
        say "  no compiled mmcv $mmcv for this Python in $wheels"
    fi
    compile_mmcv
}

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
plan=$("$python" requirements/torch_builds.py "$request") || exit 2
cuda='' torch='' index='' wheels='' nvcc='' archs='' gpus=''
eval "$plan"
if [[ $wheels ]]; then
    duration="If $wheels has mmcv, this takes a few minutes, else about 15 more on two cores."
elif [[ $cuda =~ ^(cpu)?$ ]] && mmcv_is_built; then
    duration='mmcv is already compiled, so this takes a few minutes.'
else
    check_compiler
    duration='Compiling mmcv takes about 15 minutes on two cores, for a CPU only once: pip caches the wheel.'
fi
case $cuda in
    '') target='no GPU found' ;;
    cpu) target='for the CPU' ;;
    *) target="for CUDA $cuda${gpus:+, $gpus}" ;;
esac
say "Setting up $venv with the versions in requirements/: $torch ($target), mmcv with its"
say "operators, mmengine, mmdet, mmseg and the packages for the tests."
say "$duration"

trap 'interrupted INT 130' INT
trap 'interrupted TERM 143' TERM HUP
begin=$SECONDS
unset PYTHONPATH  # pip would see packages outside the environment
unset CUDA_VISIBLE_DEVICES  # what is installed depends on the machine
[[ -x $venv/bin/python ]] && "$venv/bin/python" -m pip --version > /dev/null 2>&1 || "$python" -m venv "$venv"
if command -v flock > /dev/null; then
    exec 9> "$venv/install.lock"
    flock -n 9 || { say "  waiting for another installation into $venv"; flock 9; }
    if installed; then finish; fi
fi
rm -f "$stamp"
: > "$log"

install_torch
check_torch
install_mmcv
echo "$torch" > "$venv/torch.txt"  # no other package replaces it
step 'other packages' pip install -r requirements/onedl.txt -r requirements/tests.txt -c requirements/constraints.txt \
    -c "$venv/torch.txt"
if ! mmcv_works; then
    say "  mmcv was compiled for another PyTorch or device and is recompiled: about 15 minutes on two cores."
    check_compiler
    pip cache remove onedl_mmcv >> "$log" 2>&1 || true
    compile_mmcv --force-reinstall
    mmcv_works || fail "the compiled mmcv does not work with ${gpus:-CUDA $device}: see the end of $log"
fi
step pvt_mm pip install --no-build-isolation --no-deps -e .
step 'import test' stack_works "$venv/bin/python"

printf '%s\n' "$request" "$(summary)" > "$built"
wanted > "$stamp.part"
mv "$stamp.part" "$stamp"
say "Set up in $(elapsed "$begin"): $(sed -n 2p "$built")."
finish
