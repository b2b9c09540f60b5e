"""The job of a trial: runs its training as a subprocess, resumes it after an interruption and records the outcome."""

import math
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pvt_mm.utils.files import write_json

# Exit codes of a training that a signal stopped: after it wrote a checkpoint (EX_TEMPFAIL), or before its first one, as
# subprocess and as shells (tools/launch.py) report it.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
STOPPED = (os.EX_TEMPFAIL, *(-number for number in SIGNALS), *(128 + number for number in SIGNALS))
GRACE = 150  # seconds between SIGTERM and SIGKILL, in which training writes a checkpoint; tools/launch.py has 120


@dataclass
class Job:
    """The training of one trial. submitit calls it in a separate process, and again after a preemption.

    ``command`` runs in the folder ``cwd``, with ``environment`` in addition to the variables of this process, and with
    ``--resume`` if ``work_dir`` has a checkpoint. On several nodes, each of Slurm's tasks calls it: the first one
    writes ``train.log``, the others ``train_<task>.log``.
    """

    command: list[str]
    work_dir: str
    cwd: str
    environment: Mapping[str, str] = field(default_factory=dict)

    def __call__(self) -> None:
        """Trains, and writes ``outcome.json``: ``finished`` or ``failed``, still ``running`` if a signal stops it.

        Raises:
            SystemExit: One of several tasks failed, for Slurm to end the others.
        """
        folder, started = Path(self.work_dir), time.time()
        command = [*self.command, *(['--resume'] if (folder / 'last_checkpoint').is_file() else [])]
        on_slurm, stopped, kill_time = os.environ.get('SUBMITIT_EXECUTOR') == 'slurm', [], math.inf
        task, tasks = (int(os.environ[name]) for name in ('SLURM_PROCID', 'SLURM_NTASKS')) if on_slurm else (0, 1)
        if task == 0:
            write_json(folder / 'outcome.json', dict(state='running', host=socket.gethostname()))
        if os.environ.get('SUBMITIT_EXECUTOR') == 'local':
            os.setpgrp()  # a terminal sends Ctrl-C to its whole process group
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # blocked by Local.submit
        before = signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
        with open(folder / (f'train_{task}.log' if task else 'train.log'), 'ab', buffering=0) as log:
            log.write(f'$ {shlex.join(command)}\n'.encode())
            environment = {**os.environ, **self.environment}
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.cwd, env=environment)
        try:
            while (code := process.poll()) is None:
                if stopped and not on_slurm and kill_time == math.inf:  # Slurm signals the training itself
                    process.terminate()
                    kill_time = time.time() + GRACE
                if time.time() > kill_time:
                    process.kill()
                time.sleep(0.1)  # a blocking wait delays signals that arrive just before it
            if code and (stopped or code in STOPPED):
                # Slurm requeues a preempted job only if it is still running when Slurm ends it.
                time.sleep(600 if on_slurm else 0)
                return
        finally:
            process.terminate()  # where Ctrl-C or submitit's signal for a requeue ends the waiting
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
            signal.signal(signal.SIGTERM, before)
        outcome = dict(state='failed' if code else 'finished', code=code, seconds=round(time.time() - started))
        if code or task == 0:
            write_json(folder / 'outcome.json', outcome)
        if code and tasks > 1:
            raise SystemExit(1)

    def checkpoint(self) -> Any:
        """Tells submitit to submit the same job again; its next call resumes training."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)
