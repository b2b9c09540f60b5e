"""The trials of a sweep in their folders: what is left to do, doing it, and where each stands.

A trial's work directory holds, beside what training writes there, ``submitted.json`` (what it is and which job runs
it), ``train.log`` (what training printed) and ``outcome.json`` (whether it runs, has finished or has failed). A trial
whose job is gone and whose outcome says neither was cut off: by Ctrl-C, a time limit, a machine that went down.
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

from pvt_mm.errors import InputError
from pvt_mm.files import read_json, write_json
from pvt_mm.sweep.executors import EXECUTORS, Local, Slurm
from pvt_mm.sweep.job import Job, train_command
from pvt_mm.sweep.spec import Sweep, Trial

PROGRESS = re.compile(
    r'(?:Epoch\(train\)\s+\[\s*(?P<epoch>\d+)\]\[|Iter\(train\)\s+\[)\s*(?P<step>\d+)/(?P<steps>\d+)\]'
    r'.*?eta: (?P<eta>(?:\d+ days?, )?[\d:]+)'
)


@dataclass
class Status:
    """Where a trial stands.

    Attributes:
        state: ``new``, ``queued``, ``running``, ``finished``, ``failed`` or ``cut off``.
        executor: The name of the executor that its job was given to, if it was.
        job: The job's id.
        devices: The GPUs that it runs on, where it was started on this machine.
        progress: ``'epoch 3/12'``, or ``'1000/80000'`` iterations.
        metric: The last validation's, if there was one.
        eta: How long training takes yet, by its own estimate.
    """

    state: str
    executor: str | None = None
    job: str | None = None
    devices: str | None = None
    progress: str = ''
    metric: float | None = None
    eta: str = ''


class Trials:
    """The trials of a sweep below a folder: their commands, their states, and what runs them.

    Args:
        sweep: The sweep.
        folder: Where the trials' work directories are.
        train: The path of ``tools/train.py``.
        executor: Where the trials run; None to look at them only.
        flags: Further flags of every training.
        gpus: GPUs of a trial, where there is no executor to say.

    Raises:
        InputError: A trial was run there as something else.
    """

    def __init__(
        self,
        sweep: Sweep,
        folder: Path,
        train: Path,
        executor: Local | Slurm | None = None,
        flags: Sequence[str] = (),
        gpus: int | None = None,
    ):
        self.sweep, self.folder, self.executor = sweep, folder, executor
        self.gpus = executor.gpus if executor else gpus or 0
        self.commands = {t: train_command(t, folder / t.name, train, self.gpus, flags) for t in sweep.trials}
        self.flags = list(flags)
        for trial in sweep.trials:
            before, now = read_json(folder / trial.name / 'submitted.json').get('trial'), self._identity(trial)
            if before and before != now:
                what = next(key for key in now if before.get(key) != now[key])
                raise InputError(
                    f'{folder / trial.name} was run with {what} {before.get(what)}, and would now be with {now[what]}: '
                    'choose another --work-dir, or delete that folder'
                )

    def _identity(self, trial: Trial) -> dict:
        return dict(config=trial.config, options=list(trial.options), seed=trial.seed, flags=self.flags)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps others from running the same trials.

        Raises:
            InputError: Another does, or the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = open(self.folder / '.lock', 'w')  # noqa: SIM115
        except OSError as error:
            raise InputError(f'{self.folder} cannot be written: {error.strerror}') from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f'another tools/sweep.py runs the sweep in {self.folder}') from None
            yield

    def statuses(self) -> dict[Trial, Status]:
        """Returns where every trial stands."""
        kept = {trial: read_json(self.folder / trial.name / 'submitted.json') for trial in self.sweep.trials}
        alive = {}
        for name, executor in EXECUTORS.items():
            jobs = [one['job'] for one in kept.values() if one.get('executor') == name]
            alive |= {(name, job): state for job, state in executor.alive(jobs).items()}
        statuses = {}
        for trial, one in kept.items():
            folder = self.folder / trial.name
            outcome = read_json(folder / 'outcome.json')  # after the jobs: one that has ended has written it
            state = outcome.get('state')
            if state not in ('finished', 'failed'):
                state = alive.get((one['executor'], one['job']), 'cut off') if one else 'new'
            statuses[trial] = Status(state, one.get('executor'), one.get('job'), one.get('devices'))
            if one:
                _read_progress(statuses[trial], trial, folder, self.sweep.metric)
        return statuses

    def submit(self, trial: Trial, environment: Mapping[str, str]) -> None:
        """Submits a trial that is not running, to go on from its last checkpoint if there is one."""
        folder = self.folder / trial.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'outcome.json').unlink(missing_ok=True)
        job = Job(self.commands[trial], str(folder.absolute()), os.getcwd(), environment)
        with _ctrl_c_later():
            kept = dict(
                trial=self._identity(trial),
                executor=self.executor.name,
                job=self.executor.submit(job, f'{self.sweep.name}/{trial.name}'),
                devices=environment.get('CUDA_VISIBLE_DEVICES'),
            )
            write_json(folder / 'submitted.json', kept)

    def run(self, show: Callable[[dict[Trial, Status]], None]) -> dict[Trial, Status]:
        """Runs what is not finished, to its end, and returns where every trial then stands.

        Ctrl-C cancels what can be: see the executor. One that is refused waits for those that run.

        Args:
            show: Called with every trial's status, every ``executor.every`` seconds.

        Raises:
            InputError: Slurm refuses a trial while none runs.
        """
        statuses = self.statuses()
        waiting = [trial for trial, status in statuses.items() if status.state in ('new', 'failed', 'cut off')]
        try:
            while True:
                active = [s for t, s in statuses.items() if t not in waiting and s.state in ('queued', 'running')]
                while waiting and len(active) < self.executor.limit:
                    environment = self.executor.environment({status.devices for status in active})
                    trial = waiting.pop(0)
                    try:
                        self.submit(trial, environment)
                    except InputError:
                        waiting.insert(0, trial)
                        if not active:
                            raise
                        break  # a limit on jobs, say
                    active.append(Status('queued', devices=environment.get('CUDA_VISIBLE_DEVICES')))
                statuses = self.statuses()
                shown = {t: Status('waiting') if t in waiting else status for t, status in statuses.items()}
                show(shown)
                if not waiting and not any(status.state in ('queued', 'running') for status in statuses.values()):
                    return statuses
                time.sleep(self.executor.every)
        except KeyboardInterrupt:
            active = [s for s in self.statuses().values() if s.state in ('queued', 'running')]
            done = self.executor.cancel({s.job: s.state for s in active if s.executor == self.executor.name})
            sys.stderr.write(f'\n{done}, {len(waiting)} not started. The same command goes on from here.\n')
            raise


@contextlib.contextmanager
def _ctrl_c_later() -> Iterator[None]:
    """Has Ctrl-C wait until a job is on record."""
    came = []
    before = signal.signal(signal.SIGINT, lambda *_: came.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came and before is not signal.SIG_IGN:
            raise KeyboardInterrupt


def last_lines(folder: Path, count: int = 8) -> list[str]:
    """Returns the last lines that a trial's last start printed; what its job printed where training never began."""
    errors = sorted(folder.glob('submitit/*.err'), key=os.path.getmtime)
    lines = (_tail(folder / 'train.log') or ''.join(map(_tail, errors))).splitlines()
    start = max((i + 1 for i, line in enumerate(lines) if line.startswith('$ ')), default=0)
    return [line for line in lines[start:] if line.strip()][-count:]


def _read_progress(status: Status, trial: Trial, folder: Path, metric: str) -> None:
    text = _tail(folder / 'train.log')
    for match in PROGRESS.finditer(text):
        epoch = match['epoch']
        status.progress = f'epoch {epoch}/{trial.epochs}' if epoch else f'{match["step"]}/{match["steps"]}'
        status.eta = match['eta']
    values = re.findall(rf'\s{re.escape(metric)}: (-?[\d.]+|nan)\s', text + '\n')
    status.metric = float(values[-1]) if values else None
    if status.state != 'running':
        status.eta = ''


def _tail(path: Path, size: int = 1 << 18) -> str:
    try:
        with open(path, 'rb') as file:
            file.seek(max(0, os.path.getsize(path) - size))
            return file.read().decode('utf-8', errors='replace')
    except OSError:
        return ''
