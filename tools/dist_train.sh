#!/usr/bin/env bash
# Train on several GPUs of one or more machines: tools/dist_train.sh CONFIG GPUS [flags of tools/train.py]
# With several machines, run it on each, with NNODES, NODE_RANK, MASTER_ADDR and PORT set.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: [PYTHON= NNODES= NODE_RANK= MASTER_ADDR= PORT=] $0 CONFIG GPUS [flags of tools/train.py]" >&2
    exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
config=$1 gpus=$2
shift 2
check_integer "GPUS (in CONFIG GPUS)" "$gpus" 1
run_with_torchrun "$gpus" "$tools/train.py" "$config" --launcher pytorch "$@"
