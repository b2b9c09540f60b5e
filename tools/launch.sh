# Functions of dist_*.sh, slurm_*.sh and train.sbatch, which read this file.
# shellcheck shell=bash

tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)

fail() {
    echo "error: $*" >&2
    exit 2
}

check_integer() {  # NAME VALUE LOWEST [HIGHEST]
    [[ $2 =~ ^(0|[1-9][0-9]{0,5})$ ]] && (($2 >= $3 && $2 <= ${4:-$2})) ||
        fail "$1 is '$2': set it to an integer of at least $3${4:+ and at most $4}"
}

check_slurm() {  # PROGRAM WITHOUT
    command -v "$1" > /dev/null ||
        fail "Slurm's $1 is not on PATH: run this where jobs are submitted to Slurm; tools/$2 without Slurm"
}

has_packages() {  # INTERPRETER
    "$1" -c 'import sys
from importlib.util import find_spec
sys.exit(not (find_spec("torch") and find_spec("mmengine")))' 2> /dev/null
}

# Whether tools/install.sh is still installing the environment of an interpreter, or failed to.
is_half_installed() {
    local folder=${1%/bin/python}
    [[ -f $folder/install.log && ! -f $folder/pvt_mm.installed ]]
}

# Prints the interpreter to use, the first with PyTorch and MMEngine: PYTHON; that of the active environment, the one that
# `make` has set up, python or python3.
find_python() {
    local active=${VIRTUAL_ENV:-${CONDA_PREFIX:-}} each made
    if [[ ${PYTHON:-} ]]; then
        has_packages "$PYTHON" || fail "PYTHON=$PYTHON does not run, or lacks PyTorch or MMEngine: run make setup and leave" \
            "PYTHON= out, or set it to the interpreter of an environment that has them"
        echo "$PYTHON"
        return
    fi
    made=$(cat "$tools/../build/python" 2> /dev/null) || true
    for each in "${active:+$active/bin/python}" "$made" "${tools%/*}/.venv/bin/python" python python3; do
        if [[ $each ]] && ! is_half_installed "$each" && has_packages "$each"; then
            command -v "$each"
            return
        fi
    done
    fail "no Python with PyTorch and MMEngine: run make setup, or set PYTHON= to the interpreter of an environment that has them"
}

# GPUS PROGRAM ARGUMENTS...: runs a program in a process for each GPU of NNODES machines (1), of which this is NODE_RANK (0).
# On one machine without PORT a free port is taken, so that several can run at a time.
run_with_torchrun() {
    local gpus=$1 nodes=${NNODES:-1} address=(--standalone --local_addr=127.0.0.1) python
    shift
    check_integer NNODES "$nodes" 1
    check_integer NODE_RANK "${NODE_RANK:-0}" 0 $((nodes - 1))
    if [[ ${PORT:-} ]]; then check_integer PORT "$PORT" 1 65535; fi
    python=$(find_python)
    if [[ $nodes != 1 || ${PORT:-} ]]; then
        address=(--nnodes="$nodes" --node_rank="${NODE_RANK:-0}"
            --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}")
    fi
    exec "$python" "$tools/launch.py" "${address[@]}" --nproc_per_node="$gpus" "$@"
}

# PARTITION JOB_NAME: sets slurm_options, for a process for each of GPUS (8) GPUs, GPUS_PER_NODE (8) on a machine.
set_slurm_options() {
    local gpus=${GPUS:-8}
    check_integer GPUS "$gpus" 1
    local per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
    check_integer GPUS_PER_NODE "$per_node" 1
    ((gpus % per_node == 0)) || fail "GPUS=$gpus is no multiple of the GPUs on a node: set GPUS_PER_NODE (now $per_node) too"
    check_integer CPUS_PER_TASK "${CPUS_PER_TASK:-5}" 1
    slurm_options=(--partition="$1" --job-name="$2" --gres="gpu:$per_node"
        --nodes="$((gpus / per_node))" --ntasks="$gpus" --ntasks-per-node="$per_node"
        --cpus-per-task="${CPUS_PER_TASK:-5}")
    if [[ ${PORT:-} ]]; then  # otherwise each job has its own
        check_integer PORT "$PORT" 1 65535
        export MASTER_PORT=$PORT
    fi
}
