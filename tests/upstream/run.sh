#!/usr/bin/env bash
# Runs the tests with upstream's OpenMMLab, in an environment of their own (install.sh): TORCH=2.1.2 VENV=DIR $0 [TESTS]
# The last line is the environment's row in docs/compatibility.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python=$(tests/upstream/install.sh)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
"$python" -m pytest -p no:cacheprovider --numprocesses 2 --dist worksteal "$@" | tee "$log" || status=$?
"$python" - "$(tail -n 1 "$log" | sed 's/^=* *//; s/ *=*$//')" << 'END'
import datetime
import platform
import sys
from importlib.metadata import version

names = ('torch', 'numpy', 'mmengine', 'mmcv', 'mmdet', 'mmsegmentation')
stack = ', '.join(f'{name} {version(name)}' for name in names)
print(f'| {stack} | {platform.python_version()} | {datetime.date.today()}: {sys.argv[1]} |')
END
exit "$status"
