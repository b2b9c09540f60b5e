"""Where trials run, by submitit: this machine, some at a time, or Slurm."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pvt_mm.errors import InputError
from pvt_mm.sweep.job import GRACE, Job


class Local:
    """Runs at most ``jobs`` trials at a time on this machine, each on ``gpus`` GPUs of its own.

    Raises:
        InputError: There are fewer GPUs than that.
    """

    name = 'local'
    every = 1.0  # seconds between looks at the jobs

    def __init__(self, jobs: int | None = None, gpus: int | None = None):
        import torch

        visible = os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',')
        count = torch.cuda.device_count()
        visible = visible[:count] if len(visible) >= count and visible != [''] else [str(i) for i in range(count)]
        self.gpus = min(1, count) if gpus is None else gpus
        self.limit = jobs or (max(1, count // self.gpus) if self.gpus else 1)
        if self.limit * self.gpus > count:
            raise InputError(
                f'--jobs {self.limit} of --gpus {self.gpus} need {self.limit * self.gpus}, and {count} are here'
            )
        self.devices = [','.join(visible[i * self.gpus : (i + 1) * self.gpus]) for i in range(self.limit)]

    def environment(self, taken: Collection[str]) -> dict[str, str]:
        """Returns the environment of a trial beside others that have GPUs: its own GPUs, or its share of the cores."""
        threads = os.environ.get('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1) // self.limit)))
        free = next((devices for devices in self.devices if devices not in taken), self.devices[0])
        return {'CUDA_VISIBLE_DEVICES': free, **({} if self.gpus else {'OMP_NUM_THREADS': threads})}

    def submit(self, job: Job, name: str) -> str:
        """Starts a job, and returns the process's id."""
        executor = submitit().LocalExecutor(Path(job.work_dir) / 'submitit')
        executor.update_parameters(timeout_min=60 * 24 * 365, tasks_per_node=1)
        # A terminal sends Ctrl-C to all that was started from it, and submitit would kill the job a second later.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return executor.submit(job).job_id
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    @classmethod
    def alive(cls, jobs: Sequence[str]) -> dict[str, str]:
        """Returns the states (``running``) of those jobs that are not over, also of an earlier command's."""
        return {job: 'running' for job in jobs if cls._is_ours(job)}

    @staticmethod
    def _is_ours(job: str) -> bool:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(int(job), os.WNOHANG)  # or it stays a zombie
        process = Path('/proc') / job
        try:
            command, state = (
                (process / 'cmdline').read_bytes(),
                (process / 'stat').read_text().rpartition(')')[2].split()[0],
            )
        except OSError:
            return False
        return state not in 'ZX' and (b'submitit.local' in command or not command)  # it has none while it starts

    def cancel(self, jobs: Mapping[str, str]) -> str:
        """Stops the running jobs, and says so before and after: each writes a checkpoint first."""
        if jobs:
            sys.stderr.write(
                f'\nstopping {len(jobs)} running: a checkpoint is written first, which may take a minute\n'
            )
        left, until = list(jobs), time.time() + GRACE + 10
        while left and time.time() < until:
            for job in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(job), signal.SIGTERM)  # SIGINT is submitit's to kill the job a second later
            time.sleep(0.5)
            left = list(self.alive(left))
        return f'{len(jobs) - len(left)} running stopped' + (f', {len(left)} go on' if left else '')


class Slurm:
    """Submits trials to Slurm, each a job of one node, that is submitted again when it is preempted or out of time.

    Args:
        partition: The partition; None for the cluster's default.
        gpus: GPUs of a trial; none if 0. It has five cores for each, unless ``more`` says ``cpus-per-task``.
        minutes: The time limit. A trial that needs longer is resumed in as many jobs as it takes.
        more: Any other parameter of ``sbatch``, by its long name: ``dict(account='vision', mem='64G')``.
        jobs: How many are submitted at a time; all if None.

    Raises:
        InputError: There is no Slurm here.
    """

    name = 'slurm'
    every = 10.0
    MAX_TIMEOUTS = 1000

    def __init__(
        self,
        partition: str | None = None,
        gpus: int = 1,
        minutes: int = 60 * 24,
        more: Mapping[str, str] | None = None,
        jobs: int | None = None,
    ):
        for program in ('sbatch', 'squeue', 'scancel'):
            if not shutil.which(program):
                raise InputError(
                    f'--executor slurm: there is no {program} here; run it on a machine that submits to Slurm'
                )
        self.gpus, self.limit = gpus, jobs or sys.maxsize
        more = {'requeue': True, 'open_mode': 'append', **(more or {})}
        cores = more.pop('cpus-per-task', more.pop('cpus_per_task', 5 * gpus or 1))
        self.parameters = dict(
            time=minutes,
            nodes=1,
            ntasks_per_node=1,
            cpus_per_task=int(cores),
            setup=['export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK'],  # which srun has not known of itself since 22.05
            additional_parameters=more,
        )
        self.parameters |= dict(partition=partition) if partition else {}
        self.parameters |= dict(gpus_per_node=gpus) if gpus else {}

    @staticmethod
    def environment(taken: Collection[str]) -> dict[str, str]:
        """Returns nothing: Slurm gives a job its GPUs and cores."""
        return {}

    def submit(self, job: Job, name: str) -> str:
        """Submits a job, and returns its id.

        Raises:
            InputError: Slurm refuses it.
        """
        executor = submitit().SlurmExecutor(Path(job.work_dir) / 'submitit', max_num_timeout=self.MAX_TIMEOUTS)
        try:
            executor.update_parameters(job_name=name, **self.parameters)
            return executor.submit(job).job_id
        except (ValueError, submitit().core.utils.FailedJobError) as error:
            raise InputError(f'Slurm refuses {name}: {str(error).strip()}') from error

    @staticmethod
    def alive(jobs: Sequence[str]) -> dict[str, str]:
        """Returns the states (``queued`` or ``running``) of those jobs that are not over.

        Accounting (sacct) is not needed. Where Slurm does not answer, they are taken to be running.
        """
        if not jobs:
            return {}
        command = ['squeue', '--noheader', '--me', '--states=all', '--format=%i %T']
        try:
            answer = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return dict.fromkeys(jobs, 'running')
        states = dict(line.split() for line in answer.stdout.splitlines())
        kinds = dict.fromkeys(('RUNNING', 'COMPLETING', 'SUSPENDED', 'STOPPED', 'SIGNALING'), 'running')
        kinds |= dict.fromkeys(('PENDING', 'CONFIGURING', 'REQUEUED', 'REQUEUE_HOLD', 'SPECIAL_EXIT'), 'queued')
        return {job: kinds[states[job]] for job in jobs if states.get(job) in kinds}

    def cancel(self, jobs: Mapping[str, str]) -> str:
        """Cancels the jobs that wait in the queue, and says so."""
        queued = [job for job, state in jobs.items() if state == 'queued']
        if queued:
            subprocess.run(['scancel', '--state=PENDING', *queued], check=False)
        running = len(jobs) - len(queued)
        return f'{len(queued)} queued cancelled' + (f', {running} running go on' if running else '')


EXECUTORS = {'local': Local, 'slurm': Slurm}


def submitit() -> Any:
    """Returns the module of that name.

    Raises:
        InputError: It is not installed.
    """
    try:
        import submitit
    except ImportError as error:
        raise InputError(f'sweeps need submitit ({error}): pip install submitit') from error
    return submitit
