"""Trains for 2,000 steps at changing sizes, with evaluations and checkpoints, and measures memory, files and threads.

``make test-soak`` runs it. After step 500, resident memory (of the process and its data workers), open files and
threads must not grow. It fits a line to the readings, and prints its slope and its gain by the end.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pvt_mm.datasets.shapes import make_shapes
from tests.crash.tasks import STEPS_OF_EPOCH, write_task
from tools import train as tool

SETTLED = 500
# Allowed gain of the fitted line from step 500 to the end. Memory, as a share: MMEngine keeps the history of the log
# (some 200 bytes a step), and the allocator has noise. Files and threads: their number.
ALLOWED = dict(memory=0.01, files=0.5, threads=0.5)


@HOOKS.register_module()
class Watch(Hook):
    """Records memory (MB), open files and threads after every tenth step."""

    priority = 'LOWEST'
    readings: ClassVar[list[tuple[int, float, int, int]]] = []
    advance = staticmethod(lambda step: None)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        step = runner.iter + 1
        if step % 10 == 0:
            self.readings.append((step, *usage()))
            self.advance(step)


def usage() -> tuple[float, int, int]:
    """Returns resident memory in MB, open files and threads of this process and its children."""
    children = [pid for task in Path('/proc/self/task').iterdir() for pid in (task / 'children').read_text().split()]
    memory = files = threads = 0
    for pid in ('self', *children):
        status = dict(
            line.split(':\t', 1) for line in Path(f'/proc/{pid}/status').read_text().splitlines() if ':\t' in line
        )
        memory += int(status['VmRSS'].split()[0]) / 1024
        threads += int(status['Threads'])
        files += len(os.listdir(f'/proc/{pid}/fd'))
    return memory, files, threads


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--steps', type=int, default=2000, help='number of steps (default: 2000)')
    args = parser.parse_args()
    torch.set_num_threads(1)  # the feature maps are small
    root = Path(tempfile.mkdtemp(prefix='pvt_mm_soak_'))
    make_shapes(root / 'shapes', image_size=64, train=2 * STEPS_OF_EPOCH, val=4)
    config = write_task('retinanet', root, root / 'shapes', -(-args.steps // STEPS_OF_EPOCH), workers=1)
    with config.open('a') as file:
        file.write("custom_hooks.append(dict(type='Watch'))\ntrain_cfg.update(val_interval=10)\n")
        file.write('default_hooks.update(logger=dict(interval=100), checkpoint=dict(interval=5, max_keep_ckpts=2))\n')
    log, console = root / 'train.log', Console(stderr=True)
    console.print(f'the log is {log}', highlight=False)
    output = os.dup(1), os.dup(2)
    with open(output[1], 'w', closefd=False) as terminal, open(log, 'w') as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        with Progress(console=Console(file=terminal), transient=True) as progress:
            bar = progress.add_task('steps', total=args.steps)
            Watch.advance = staticmethod(lambda step: progress.update(bar, completed=step))
            code = tool.main([str(config), '--work-dir', str(root / 'run')])
    os.dup2(output[0], 1)
    os.dup2(output[1], 2)
    if code:
        print(log.read_text()[-2000:])
        return code
    readings = np.array(Watch.readings)
    settled = readings[readings[:, 0] >= min(SETTLED, args.steps // 4)]
    steps = settled[:, 0]
    table = Table('after step 500', 'min', 'median', 'max', 'slope per step', 'gain by the end', 'allowed', box=None)
    result, grew = {'steps': int(readings[-1, 0])}, []
    for i, (name, unit) in enumerate(dict(memory=' MB', files='', threads='').items(), start=1):
        values = settled[:, i]
        slope = np.polyfit(steps, values, 1)[0]
        gain = slope * (steps[-1] - steps[0])
        allowed = ALLOWED[name] * (np.median(values) if name == 'memory' else 1)
        cells = [f'{value:.1f}{unit}' for value in (values.min(), np.median(values), values.max())]
        table.add_row(name, *cells, f'{slope:+.5f}{unit}', f'{gain:+.2f}{unit}', f'{allowed:.1f}{unit}')
        result[name] = dict(median=float(np.median(values)), slope=float(slope), gain=float(gain))
        grew += [name] if gain > allowed else []
    Console(width=100).print(table)
    print(json.dumps({**result, 'grew': grew}))
    return 1 if grew else 0


if __name__ == '__main__':
    sys.exit(main())
