# Functions of dist_*.sh, slurm_*.sh and train.sbatch, which read this file.
# shellcheck shell=bash

tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)

has_packages() {  # INTERPRETER
    "$1" -c 'import sys
from importlib.util import find_spec
sys.exit(not (find_spec("torch") and find_spec("mmengine")))' 2> /dev/null
}

# Prints the interpreter to use: PYTHON; that of the active environment, if it has PyTorch and MMEngine; that which `make`
# has set up; or python.
find_python() {
    local active=${VIRTUAL_ENV:-${CONDA_PREFIX:-}} made
    if [[ ${PYTHON:-} ]]; then
        echo "$PYTHON"
        return
    fi
    if [[ $active ]] && has_packages "$active/bin/python"; then
        echo "$active/bin/python"
        return
    fi
    for made in "$(cat "$tools/../build/python" 2> /dev/null)" "${tools%/*}/.venv/bin/python"; do
        if [[ -x $made ]]; then
            echo "$made"
            return
        fi
    done
    command -v python || echo python3
}

# GPUS PROGRAM ARGUMENTS...: runs a program in a process for each GPU of NNODES machines (1), of which this is NODE_RANK (0).
# On one machine without PORT a free port is taken, so that several can run at a time.
run_with_torchrun() {
    local gpus=$1 nodes=${NNODES:-1} address=(--standalone --local_addr=127.0.0.1)
    shift
    if [[ $nodes != 1 || ${PORT:-} ]]; then
        address=(--nnodes="$nodes" --node_rank="${NODE_RANK:-0}"
            --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}")
    fi
    exec "$(find_python)" "$tools/launch.py" "${address[@]}" --nproc_per_node="$gpus" "$@"
}

# PARTITION JOB_NAME: sets slurm_options, for a process for each of GPUS (8) GPUs, GPUS_PER_NODE (8) on a machine.
set_slurm_options() {
    local gpus=${GPUS:-8}
    local per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
    slurm_options=(--partition="$1" --job-name="$2" --gres="gpu:$per_node"
        --nodes="$(((gpus + per_node - 1) / per_node))" --ntasks="$gpus" --ntasks-per-node="$per_node"
        --cpus-per-task="${CPUS_PER_TASK:-5}")
    if [[ ${PORT:-} ]]; then export MASTER_PORT=$PORT; fi  # otherwise each job has its own
}
