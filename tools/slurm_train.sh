#!/usr/bin/env bash
# Train under Slurm: [GPUS= GPUS_PER_NODE= CPUS_PER_TASK= SRUN_ARGS= PORT= PYTHON=] tools/slurm_train.sh
#     [--signal NAME@SECONDS] [--requeue] PARTITION JOB_NAME CONFIG WORK_DIR [flags of tools/train.py]
# --signal: Slurm signals training so many seconds before its time limit (USR2@120), and it saves a checkpoint and exits
#     with 75.
# --requeue: submit tools/train.sbatch instead of waiting here. After a preemption, a failed node or its time limit, the job
#     is queued again and resumes.
# SRUN_ARGS: more options of srun and sbatch, such as SRUN_ARGS=--time=24:00:00 (the default is the partition's limit).
set -euo pipefail
before_limit=USR2@120 requeue=
while [[ ${1:-} == --* ]]; do
    case $1 in
        --signal=*) before_limit=${1#*=} ;;
        --signal)
            [ $# -gt 1 ] || break
            before_limit=$2
            shift
            ;;
        --requeue) requeue=yes ;;
        *) break ;;
    esac
    shift
done
if [[ $# -lt 4 || $1 == --* ]]; then
    echo "usage: [GPUS= GPUS_PER_NODE= CPUS_PER_TASK= SRUN_ARGS=--time=... PORT= PYTHON=] $0" \
        "[--signal NAME@SECONDS] [--requeue] PARTITION JOB_NAME CONFIG WORK_DIR [flags of tools/train.py]" >&2
    exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
check_slurm "$([[ $requeue ]] && echo sbatch || echo srun)" 'dist_train.sh trains'
set_slurm_options "$1" "$2"
config=$3 work_dir=$4
shift 4
python=$(find_python)
slurm_options+=(--signal="$before_limit")
# SRUN_ARGS may be several words
# shellcheck disable=SC2086
if [[ $requeue ]]; then
    export PYTHON=$python PVT_MM_TOOLS=$tools
    exec sbatch "${slurm_options[@]}" --requeue ${SRUN_ARGS:-} "$tools/train.sbatch" "$config" "$work_dir" "$@"
fi
# shellcheck disable=SC2086
exec srun "${slurm_options[@]}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "$python" -u "$tools/train.py" "$config" --work-dir "$work_dir" --launcher slurm "$@"
