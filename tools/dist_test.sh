#!/usr/bin/env bash
# Test on several GPUs of one or more machines: tools/dist_test.sh CONFIG CHECKPOINT GPUS [flags of tools/test.py]
# With several machines, run it on each, with NNODES, NODE_RANK, MASTER_ADDR and PORT set.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: [PYTHON= NNODES= NODE_RANK= MASTER_ADDR= PORT=] $0 CONFIG CHECKPOINT GPUS [flags of tools/test.py]" >&2
    exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
config=$1 checkpoint=$2 gpus=$3
shift 3
check_integer "GPUS (in CONFIG CHECKPOINT GPUS)" "$gpus" 1
run_with_torchrun "$gpus" "$tools/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
