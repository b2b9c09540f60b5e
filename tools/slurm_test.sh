#!/usr/bin/env bash
# Test under Slurm: [GPUS= GPUS_PER_NODE= CPUS_PER_TASK= SRUN_ARGS= PORT= PYTHON=] tools/slurm_test.sh
#     PARTITION JOB_NAME CONFIG CHECKPOINT [flags of tools/test.py]
set -euo pipefail
if [ $# -lt 4 ]; then
    echo "usage: [GPUS= GPUS_PER_NODE= CPUS_PER_TASK= SRUN_ARGS= PORT= PYTHON=] $0" \
        "PARTITION JOB_NAME CONFIG CHECKPOINT [flags of tools/test.py]" >&2
    exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
check_slurm srun 'dist_test.sh tests'
set_slurm_options "$1" "$2"
config=$3 checkpoint=$4
shift 4
python=$(find_python)
# SRUN_ARGS may be several words
# shellcheck disable=SC2086
exec srun "${slurm_options[@]}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "$python" -u "$tools/test.py" "$config" "$checkpoint" --launcher slurm "$@"
