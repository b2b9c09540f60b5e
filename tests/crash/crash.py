"""Kills real trainings at random moments, resumes them, and compares the results with an uninterrupted training.

``make test-crash`` runs it. Each training is a process of its own, forked from one that has imported everything, so
that a start takes a second. ``kill -9`` comes at a random moment of the training, or while a checkpoint is being
written, which is slowed for that. Between kills, some runs are stopped by SIGTERM.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pvt_mm.checkpoint.reader import read_file
from pvt_mm.datasets.shapes import make_shapes
from pvt_mm.engine.hooks.checkpoint_hook import STOPPED
from tests.crash.tasks import STEPS_OF_EPOCH, write_task

RUNS = [('retinanet', 0), ('retinanet', 2), ('semantic_fpn', 0), ('semantic_fpn', 2), ('classifier', 2)]
EPOCHS = 8
PROCESSES = multiprocessing.get_context('forkserver')


@dataclass
class Outcome:
    """The results of one training: its task, data workers, and counts."""

    task: str
    workers: int
    kills: int = 0
    while_writing: int = 0
    stopped: int = 0
    resumes: int = 0
    tensors: int = 0
    different: int = 0
    lost: list[str] = field(default_factory=list)


def train(arguments: list[str], log: str, slow: bool) -> None:
    """Runs ``tools/train.py`` in this process."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    if slow:
        Path.write_bytes = write_slowly
    from tools import train as tool

    sys.exit(tool.main(arguments))


def write_slowly(path: Path, content: bytes) -> None:
    """Does as ``Path.write_bytes``, but takes a second."""
    with path.open('wb') as file:
        for start in range(0, len(content), max(1, len(content) // 20)):
            file.write(content[start : start + max(1, len(content) // 20)])
            file.flush()
            time.sleep(0.05)


class Training:
    """A training that is killed and resumed."""

    def __init__(self, config: Path, folder: Path):
        self.config, self.folder, self.log = config, folder, folder.with_suffix('.log')
        self.process = None

    def start(self, resume: bool, slow: bool = False) -> None:
        """Starts the training in a new process."""
        arguments = [str(self.config), '--work-dir', str(self.folder), '--deterministic']
        self.process = PROCESSES.Process(
            target=train, args=([*arguments, *(['--resume'] if resume else [])], str(self.log), slow)
        )
        self.process.start()

    def wait_until_it_trains(self) -> None:
        """Waits for the first step that is logged after the start."""
        before = self.steps_logged()
        while self.process.is_alive() and self.steps_logged() == before:
            time.sleep(0.02)

    def steps_logged(self) -> int:
        """Returns how many steps all its processes have logged."""
        return self.log.read_text(errors='replace').count('(train)') if self.log.exists() else 0

    def wait_until_it_writes(self, seconds: float) -> bool:
        """Waits until a checkpoint is being written, and returns whether one is."""
        until = time.monotonic() + seconds
        while self.process.is_alive() and time.monotonic() < until:
            if list(self.folder.glob('.*.pth.*.tmp')):
                return True
            time.sleep(0.005)
        return False

    def end(self) -> int:
        """Waits for the process to end, and returns its exit code."""
        self.process.join()
        return self.process.exitcode


def crash(task: str, workers: int, kills: int, shapes: Path, root: Path, seed: int, advance) -> Outcome:
    """Trains once without and once with ``kills`` kills, and compares the two."""
    outcome, chance = Outcome(task, workers), random.Random(f'{seed} {task} {workers}')
    config = write_task(task, root, shapes, EPOCHS, workers)
    uninterrupted = Training(config, root / f'{config.stem}_uninterrupted')
    uninterrupted.start(resume=False)
    uninterrupted.wait_until_it_trains()
    started = time.monotonic()
    if uninterrupted.end() != 0:
        raise SystemExit(f'{task} does not train: see {uninterrupted.log}')
    duration = time.monotonic() - started

    killed = Training(config, root / f'{config.stem}_killed')
    while outcome.kills < kills:
        writing = chance.random() < 0.4
        resume = (killed.folder / 'last_checkpoint').exists()
        outcome.resumes += resume
        killed.start(resume, slow=writing)
        killed.wait_until_it_trains()
        if writing and killed.wait_until_it_writes(duration):
            time.sleep(chance.uniform(0, 1))
            outcome.while_writing += bool(list(killed.folder.glob('.*.pth.*.tmp')))
        else:
            time.sleep(chance.uniform(0, duration / 3))
        if chance.random() < 0.2:
            killed.process.terminate()
            code = killed.end()
            if code not in (STOPPED, 0):
                outcome.lost.append(f'exit code {code} at SIGTERM')
            outcome.stopped += code == STOPPED
        else:
            killed.process.kill()
        code = killed.end()
        if code not in (-signal.SIGKILL, STOPPED, 0):
            outcome.lost.append(f'exit code {code}')
            break
        if code == -signal.SIGKILL:
            outcome.kills += 1
            advance()
        if code == 0:  # it has finished: start once more
            compare(uninterrupted, killed, outcome)
            killed = Training(config, root / f'{config.stem}_killed_{outcome.kills}')
    resume = (killed.folder / 'last_checkpoint').exists()
    outcome.resumes += resume
    killed.start(resume)
    if killed.end() != 0:
        outcome.lost.append(f'exit code {killed.process.exitcode} at the end')
    compare(uninterrupted, killed, outcome)
    return outcome


def compare(uninterrupted: Training, killed: Training, outcome: Outcome) -> None:
    """Counts the tensors in the last checkpoints of two finished trainings, and those that differ in any bit."""
    for training in (uninterrupted, killed):
        if not (training.folder / 'last_checkpoint').exists():
            outcome.lost.append(f'{training.folder} has no checkpoint')
            return
    ours, theirs = (read_file((one.folder / 'last_checkpoint').read_text()) for one in (uninterrupted, killed))
    parts = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')
    ours, theirs = (dict(flat({part: one.get(part) for part in parts})) for one in (ours, theirs))
    if ours.keys() != theirs.keys():
        outcome.lost.append(f'the checkpoints of {killed.folder} have other entries')
    for name in ours.keys() & theirs.keys():
        outcome.tensors += 1
        if not same(ours[name], theirs[name]):
            outcome.different += 1
            outcome.lost.append(f'{killed.folder.name}: {name}')
    left = [path.name for path in killed.folder.glob('*.pth')]
    if len(left) > 4:  # two, the best one, and one that was not removed because of a kill
        outcome.lost.append(f'{killed.folder} has {left}')
    if list(killed.folder.glob('.*.tmp')):
        outcome.lost.append(f'{killed.folder} has a temporary file')


def flat(value, name: str = ''):
    """Yields the numbers and tensors inside a checkpoint with their paths."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, f'{name}.{key}')
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            yield from flat(inner, f'{name}.{i}')
    else:
        yield name, value


def same(a, b) -> bool:
    """Returns whether two values have the same bits."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    return a == b


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--kills', type=int, default=50, help='number of kills in all (default: 50)')
    parser.add_argument('--jobs', type=int, default=2, help='number of trainings at a time (default: 2)')
    parser.add_argument('--seed', type=int, default=int(time.time()), help='seed of the moments (default: the time)')
    parser.add_argument('--keep', action='store_true', help='keep the folder of the runs')
    args = parser.parse_args()
    console = Console(stderr=True)
    root = Path(tempfile.mkdtemp(prefix='pvt_mm_crash_'))
    console.print(f'seed {args.seed}, in {root}', highlight=False)
    make_shapes(root / 'shapes', image_size=64, train=2 * STEPS_OF_EPOCH, val=4)
    os.environ['OMP_NUM_THREADS'] = '1'
    PROCESSES.set_forkserver_preload(
        ['tools.train', 'mmdet.models', 'mmdet.datasets', 'mmseg.models', 'kornia', 'tests.crash.crash']
    )
    shares = [args.kills // len(RUNS) + (i < args.kills % len(RUNS)) for i in range(len(RUNS))]
    with Progress(console=console, transient=True) as progress, ThreadPoolExecutor(args.jobs) as threads:
        bar, lock = progress.add_task('kills', total=args.kills), threading.Lock()

        def advance() -> None:
            with lock:
                progress.advance(bar)

        waiting = [
            threads.submit(crash, *run, share, root / 'shapes', root, args.seed, advance)
            for run, share in zip(RUNS, shares, strict=True)
        ]
        outcomes = [one.result() for one in waiting]
    titles = ('task', 'workers', 'kills -9', 'during a write', 'SIGTERM', 'resumes', 'compared', 'different')
    table = Table(*titles, box=None, header_style='bold')
    for one in outcomes:
        table.add_row(one.task, *(str(value) for value in list(asdict(one).values())[1:8]))
    Console(width=100).print(table)
    lost = [line for one in outcomes for line in one.lost]
    for line in lost[:20]:
        print(f'lost: {line}')
    totals = {
        key: sum(getattr(one, key) for one in outcomes)
        for key in ('kills', 'while_writing', 'stopped', 'resumes', 'tensors', 'different')
    }
    print(json.dumps({**totals, 'lost': len(lost), 'seed': args.seed}))
    return 1 if lost or totals['different'] else 0


if __name__ == '__main__':
    sys.exit(main())
