"""What runs in a trial's job: its training, whose end is written down, and which goes on where it was cut off."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pvt_mm.files import write_json
from pvt_mm.sweep.spec import Trial

# How training ends when it is stopped from outside: with a checkpoint, or before there is anything to save, which
# tools/launch.py tells of as shells do.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
STOPPED = (os.EX_TEMPFAIL, *(-number for number in SIGNALS), *(128 + number for number in SIGNALS))
GRACE = 60  # seconds that training has, once it is told to stop, to leave a checkpoint


@dataclass
class Job:
    """One trial's training, called by submitit in a process of its own and, where it was preempted, again.

    Attributes:
        command: The training's command; ``--resume`` is added where there is a checkpoint to go on from.
        work_dir: The trial's work directory.
        cwd: Where the command runs.
        environment: Variables of the command's environment beside this one's.
    """

    command: list[str]
    work_dir: str
    cwd: str
    environment: Mapping[str, str] = field(default_factory=dict)

    def __call__(self) -> None:
        """Trains, and writes the outcome unless it is stopped from outside."""
        folder, started = Path(self.work_dir), time.time()
        command = [*self.command, *(['--resume'] if self.can_resume() else [])]
        write_json(folder / 'outcome.json', dict(state='running', host=socket.gethostname()))
        on_slurm, stopped = os.environ.get('SUBMITIT_EXECUTOR') == 'slurm', []
        if os.environ.get('SUBMITIT_EXECUTOR') == 'local':
            os.setpgrp()  # out of reach of a terminal's Ctrl-C, and so
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # see Local.submit
        before = signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
        with open(folder / 'train.log', 'ab', buffering=0) as log:
            log.write(f'$ {shlex.join(command)}\n'.encode())
            process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.cwd, env={**os.environ, **self.environment}
            )

        def stop(*_: Any) -> None:
            stopped.append(True)
            if len(stopped) == 1:
                _end(process)

        if not on_slurm:  # which tells the training itself
            signal.signal(signal.SIGTERM, stop)
            if stopped:
                _end(process)
        try:
            code = process.wait()
            if code and (stopped or code in STOPPED):
                # Slurm warns a job that it is to preempt, and one that then ends of itself is not queued again.
                time.sleep(600 if on_slurm else 0)
                return
        finally:
            process.terminate()  # where Ctrl-C or submitit's signal for a requeue ends the waiting
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
            signal.signal(signal.SIGTERM, before)
        state = 'failed' if code else 'finished'
        write_json(folder / 'outcome.json', dict(state=state, code=code, seconds=round(time.time() - started)))

    def can_resume(self) -> bool:
        """Whether training has come to its first checkpoint."""
        return (Path(self.work_dir) / 'last_checkpoint').is_file()

    def checkpoint(self) -> Any:
        """Tells submitit to submit the same again: the next call resumes."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _end(process: subprocess.Popen) -> None:
    """Tells training to stop, and kills it where it has not in :data:`GRACE` seconds."""
    process.terminate()
    timer = threading.Timer(GRACE, process.kill)
    timer.daemon = True
    timer.start()


def train_command(trial: Trial, work_dir: Path, train: Path, gpus: int = 0, flags: Sequence[str] = ()) -> list[str]:
    """Returns the command of a trial: ``tools/train.py`` (at ``train``), under torchrun on more than one GPU."""
    launch = [str(train.with_name('launch.py')), '--standalone', f'--nproc_per_node={gpus}'] if gpus > 1 else ['-u']
    command = [
        sys.executable,
        *launch,
        str(train),
        trial.config,
        '--work-dir',
        str(work_dir),
        '--seed',
        str(trial.seed),
    ]
    command += ['--launcher', 'pytorch'] if gpus > 1 else []
    return [*command, *flags, *(['--cfg-options', *trial.options] if trial.options else [])]
