"""The trials of a sweep: their folders, commands and states, and running those that have not finished.

In addition to the files of training, a trial's work directory has ``submitted.json`` (the trial's definition and its
job), ``train.log`` (the output of training) and ``outcome.json`` (``running``, ``finished`` or ``failed``). A trial
whose job has ended without an outcome was interrupted: by Ctrl-C, a time limit or a crash of the machine.
"""

import contextlib
import fcntl
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pvt_mm.sweep.executors import EXECUTORS, Local, Slurm
from pvt_mm.sweep.job import Job
from pvt_mm.sweep.spec import Sweep, Trial
from pvt_mm.utils.errors import InputError
from pvt_mm.utils.files import read_json, write_json

PROGRESS = re.compile(
    r'(?:Epoch\(train\)\s+\[\s*(?P<epoch>\d+)\]\[|Iter\(train\)\s+\[)\s*(?P<step>\d+)/(?P<steps>\d+)\]'
    r'.*?eta: (?P<eta>(?:\d+ days?, )?[\d:]+)'
)


@dataclass
class Status:
    """The status of a trial: its state, its job (executor, id, GPUs), and how far its training has come.

    A state is ``new``, ``waiting``, ``queued``, ``running``, ``finished``, ``failed`` or ``interrupted``. The progress
    is ``'epoch 3/12'`` or ``'1000/80000'`` iterations, the metric that of the last validation.
    """

    state: str
    executor: str | None = None
    job: str | None = None
    devices: str | None = None
    progress: str = ''
    metric: float | None = None
    eta: str = ''

    @property
    def is_active(self) -> bool:
        """Whether its job is queued or running."""
        return self.state in ('queued', 'running')


@dataclass
class Trials:
    """The trials of a sweep, with their work directories in one folder.

    Args:
        folder: The parent of the trials' work directories.
        train: The path of ``tools/train.py``.
        executor: Where to run trials, on how many GPUs; None only to show their statuses.
        flags: Additional flags of every training.

    Raises:
        InputError: A work directory is of a trial with another config, other options, seed or flags.
    """

    sweep: Sweep
    folder: Path
    train: Path
    executor: Local | Slurm | None = None
    flags: Sequence[str] = ()

    def __post_init__(self):
        self.gpus, nodes = (self.executor.gpus, self.executor.nodes) if self.executor else (0, 1)
        self.commands, self.identities = {}, {}
        for trial in self.sweep.trials:
            folder = self.folder / trial.name
            self.commands[trial] = train_command(trial, folder, self.train, self.gpus, self.flags, nodes)
            now = dict(config=trial.config, options=list(trial.options), seed=trial.seed, flags=list(self.flags))
            self.identities[trial] = now
            before = read_json(folder / 'submitted.json').get('trial', now)
            if what := [key for key in now if before.get(key) != now[key]]:
                raise InputError(
                    f'{folder} was run with {what[0]} {before.get(what[0])}, not {now[what[0]]}: choose another '
                    '--work-dir, or delete that folder'
                )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the folder within the block; raises an InputError if another process is running the same trials."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / '.lock', 'w') as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f'another tools/sweep.py is running the sweep in {self.folder}') from None
            yield

    def statuses(self) -> dict[Trial, Status]:
        """Returns the status of every trial."""
        submitted = {trial: read_json(self.folder / trial.name / 'submitted.json') for trial in self.sweep.trials}
        alive = {}
        for name, executor in EXECUTORS.items():
            jobs = [record['job'] for record in submitted.values() if record.get('executor') == name]
            alive |= {(name, job): state for job, state in executor.alive(jobs).items()}
        statuses = {}
        for trial, record in submitted.items():
            folder = self.folder / trial.name
            state = read_json(folder / 'outcome.json').get('state')  # read after the jobs, which write it at their end
            if state not in ('finished', 'failed'):
                state = alive.get((record['executor'], record['job']), 'interrupted') if record else 'new'
            status = Status(state, record.get('executor'), record.get('job'), record.get('devices'))
            text = _tail(folder / 'train.log') if record else ''
            for match in PROGRESS.finditer(text):
                epoch = match['epoch']
                status.progress = f'epoch {epoch}/{trial.epochs}' if epoch else f'{match["step"]}/{match["steps"]}'
                status.eta = match['eta'] if state == 'running' else ''
            for value in re.findall(rf'\s{re.escape(self.sweep.metric)}: (-?[\d.]+|nan)\s', text + '\n'):
                status.metric = float(value)
            statuses[trial] = status
        return statuses

    def submit(self, trial: Trial, environment: Mapping[str, str]) -> None:
        """Submits a trial that is not running, which resumes from its last checkpoint if there is one."""
        folder = self.folder / trial.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'outcome.json').unlink(missing_ok=True)
        job = Job(self.commands[trial], str(folder.absolute()), os.getcwd(), environment)
        interrupts = []  # Ctrl-C is delayed until a submitted job is recorded
        before = signal.signal(signal.SIGINT, lambda *_: interrupts.append(True))
        try:
            record = dict(
                trial=self.identities[trial],
                executor=self.executor.name,
                job=self.executor.submit(job, f'{self.sweep.name}/{trial.name}'),
                devices=environment.get('CUDA_VISIBLE_DEVICES'),
            )
            write_json(folder / 'submitted.json', record)
        finally:
            signal.signal(signal.SIGINT, before)
            if interrupts and before is not signal.SIG_IGN:
                raise KeyboardInterrupt

    def run(self, show: Callable[[dict[Trial, Status]], None]) -> dict[Trial, Status]:
        """Runs the trials that have not finished until all have ended, and returns the status of every trial.

        Ctrl-C cancels jobs as the executor does. A trial that is rejected waits until a running one ends. ``show`` gets
        the status of every trial every ``executor.interval`` seconds.

        Raises:
            InputError: Slurm rejects a trial while none is running.
        """
        statuses = self.statuses()
        waiting = [t for t, status in statuses.items() if not status.is_active and status.state != 'finished']
        try:
            while True:
                active = [status for t, status in statuses.items() if t not in waiting and status.is_active]
                while waiting and len(active) < self.executor.limit:
                    environment = self.executor.environment({status.devices for status in active})
                    trial = waiting.pop(0)
                    try:
                        self.submit(trial, environment)
                    except InputError:  # such as a limit on jobs
                        waiting.insert(0, trial)
                        if active:
                            break
                        raise
                    active.append(Status('queued', devices=environment.get('CUDA_VISIBLE_DEVICES')))
                statuses = self.statuses()
                show({t: Status('waiting') if t in waiting else status for t, status in statuses.items()})
                if not waiting and not any(status.is_active for status in statuses.values()):
                    return statuses
                time.sleep(self.executor.interval)
        except KeyboardInterrupt:
            active = [s for s in self.statuses().values() if s.is_active and s.executor == self.executor.name]
            done = self.executor.cancel({status.job: status.state for status in active})
            sys.stderr.write(f'\n{done}, {len(waiting)} not started. Run the same command to continue.\n')
            raise


def train_command(
    trial: Trial, work_dir: Path, train: Path, gpus: int = 0, flags: Sequence[str] = (), nodes: int = 1
) -> list[str]:
    """Returns the command of a trial: ``tools/train.py`` (at ``train``), under torchrun if ``gpus`` is above one.

    On several nodes, each of Slurm's tasks runs the command.
    """
    launch, launcher = ['-u'], []
    if nodes > 1:
        launcher = ['--launcher', 'slurm']
    elif gpus > 1:
        launch = [str(train.with_name('launch.py')), '--standalone', '--local_addr=127.0.0.1']
        launch.append(f'--nproc_per_node={gpus}')
        launcher = ['--launcher', 'pytorch']
    arguments = [trial.config, '--work-dir', str(work_dir), '--seed', str(trial.seed), *launcher, *flags]
    options = ['--cfg-options', *trial.options] if trial.options else []
    return [sys.executable, *launch, str(train), *arguments, *options]


def last_lines(folder: Path, count: int = 8) -> list[str]:
    """Returns the last lines of a trial's last training, or of its job's log if training never started."""
    errors = sorted(folder.glob('submitit/*.err'), key=os.path.getmtime)
    lines = (_tail(folder / 'train.log') or ''.join(map(_tail, errors))).splitlines()
    start = max((i + 1 for i, line in enumerate(lines) if line.startswith('$ ')), default=0)
    return [line for line in lines[start:] if line.strip()][-count:]


def _tail(path: Path) -> str:
    with contextlib.suppress(OSError), open(path, 'rb') as file:
        file.seek(max(0, os.path.getsize(path) - 2**18))
        return file.read().decode('utf-8', errors='replace')
    return ''
