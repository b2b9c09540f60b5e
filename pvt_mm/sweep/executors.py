"""Executors, which run jobs with submitit: on this machine or under Slurm."""

import contextlib
import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch

from pvt_mm.sweep.job import GRACE, Job
from pvt_mm.utils.errors import InputError, import_errors


class Local:
    """Runs at most ``jobs`` trials at a time on this machine, each on ``gpus`` GPUs of its own, if it has as many."""

    name = 'local'
    interval = 1.0  # seconds between two looks at the jobs
    nodes = 1

    def __init__(self, jobs: int | None = None, gpus: int | None = None):
        count = torch.cuda.device_count()
        visible = (os.environ.get('CUDA_VISIBLE_DEVICES') or ','.join(map(str, range(count)))).split(',')[:count]
        self.gpus = min(1, count) if gpus is None else gpus
        self.limit = jobs or (max(1, count // self.gpus) if self.gpus else 1)
        needed = self.limit * self.gpus
        if needed > count:
            raise InputError(f'--jobs {self.limit} with --gpus {self.gpus} needs {needed} GPUs; {count} are visible')
        self.devices = [','.join(visible[i * self.gpus : (i + 1) * self.gpus]) for i in range(self.limit)]

    @property
    def request(self) -> str:
        """What a trial gets, in one line."""
        return f'each trial runs here on {self.gpus} GPUs, at most {self.limit} at a time'

    @staticmethod
    def check_installed() -> None:
        """Raises an InputError if submitit is missing."""
        check_submitit()

    def environment(self, taken: Collection[str]) -> dict[str, str]:
        """Returns the environment of the next trial: free GPUs (not ``taken``), or its share of the CPU cores."""
        threads = os.environ.get('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1) // self.limit)))
        free = next((devices for devices in self.devices if devices not in taken), self.devices[0])
        return {'CUDA_VISIBLE_DEVICES': free, **({} if self.gpus else {'OMP_NUM_THREADS': threads})}

    def submit(self, job: Job, name: str) -> str:
        """Starts a job and returns its process id."""
        from submitit import LocalExecutor

        executor = LocalExecutor(Path(job.work_dir) / 'submitit')
        executor.update_parameters(timeout_min=60 * 24 * 365, tasks_per_node=1)
        # A terminal sends Ctrl-C to the new process too, on which submitit would kill the job within a second.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return executor.submit(job).job_id
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    @staticmethod
    def alive(jobs: Sequence[str]) -> dict[str, str]:
        """Returns the states (``running``) of the jobs that have not ended, whichever command started them."""
        states = {}
        for job in jobs:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(int(job), os.WNOHANG)  # reaps it if it is a zombie
            with contextlib.suppress(OSError):
                command = Path('/proc', job, 'cmdline').read_bytes()
                state = Path('/proc', job, 'stat').read_text().rpartition(')')[2].split()[0]
                # The id may be another process's by now. The command is empty while a process starts.
                if state not in 'ZX' and (b'submitit.local' in command or not command):
                    states[job] = 'running'
        return states

    def cancel(self, jobs: Mapping[str, str]) -> str:
        """Stops the running jobs, each of which writes a checkpoint first, and returns a summary."""
        if jobs:
            sys.stderr.write(f'\nstopping {len(jobs)} running: writing checkpoints may take a minute\n')
        left, until = list(jobs), time.time() + GRACE + 10
        while left and time.time() < until:
            for job in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(job), signal.SIGTERM)  # on SIGINT, submitit would kill the job within a second
            time.sleep(0.5)
            left = list(self.alive(left))
        return f'{len(jobs) - len(left)} running stopped' + (f', {len(left)} still running' if left else '')


class Slurm:
    """Submits trials to Slurm, each a job that is requeued after a preemption or a timeout.

    A trial on one node is one task, and starts a process for each GPU. On several nodes it is a task for each GPU.

    Args:
        gpus: GPUs of a trial, on all of its nodes. It gets five CPU cores for each, unless ``options`` sets
            ``cpus-per-task``.
        minutes: The time limit of a job. A longer trial is resumed in several jobs.
        options: Other options of ``sbatch`` by their long names: ``dict(account='vision', mem='64G')``.
        jobs: Maximum number of submitted jobs; no limit if None.
        nodes: Nodes of a trial.

    Raises:
        InputError: ``gpus`` is no multiple of ``nodes``, or an option is not valid.
    """

    name = 'slurm'
    interval = 10.0

    def __init__(
        self,
        partition: str | None = None,
        gpus: int = 1,
        minutes: int = 60 * 24,
        options: Mapping[str, str] | None = None,
        jobs: int | None = None,
        nodes: int = 1,
    ):
        if gpus % nodes:
            raise InputError(f'--gpus {gpus} with --nodes {nodes}: it must be a multiple of the nodes')
        self.gpus, self.nodes, self.limit = gpus, nodes, jobs or sys.maxsize
        per_node = gpus // nodes
        tasks = 1 if nodes == 1 else max(1, per_node)  # on each node
        options = {'requeue': True, 'open_mode': 'append', **(options or {})}
        cores = options.pop('cpus-per-task', options.pop('cpus_per_task', 5 * per_node // tasks or 1))
        if not str(cores).isdecimal() or int(cores) < 1:
            raise InputError(f'--slurm cpus-per-task={cores}: it must be an integer of at least 1')
        self.parameters = dict(
            partition=partition,
            time=minutes,
            nodes=nodes,
            ntasks_per_node=tasks,
            cpus_per_task=int(cores),
            gpus_per_node=per_node or None,
            srun_args=['--kill-on-bad-exit=1'],  # where a rank fails, the others may wait for it
            setup=['export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK'],  # srun ignores --cpus-per-task since 22.05
            additional_parameters=options,
        )

    @property
    def request(self) -> str:
        """The options of ``sbatch`` of a job, in one line."""
        names = ('partition', 'time', 'nodes', 'gpus_per_node', 'ntasks_per_node', 'cpus_per_task')
        options = {name: self.parameters[name] for name in names} | self.parameters['additional_parameters']
        given = {name.replace('_', '-'): value for name, value in options.items() if value not in (None, False)}
        return ' '.join(
            ['each job: sbatch', *(f'--{key}' if value is True else f'--{key}={value}' for key, value in given.items())]
        )

    @staticmethod
    def check_installed() -> None:
        """Raises an InputError if submitit or Slurm is missing on this machine."""
        check_submitit()
        for program in ('sbatch', 'squeue', 'scancel'):
            if not shutil.which(program):
                raise InputError(f'--executor slurm: {program} not found; run it on a machine that submits to Slurm')

    @staticmethod
    def environment(taken: Collection[str]) -> dict[str, str]:
        """Returns an empty environment: Slurm assigns GPUs and cores."""
        return {}

    def submit(self, job: Job, name: str) -> str:
        """Submits a job and returns its id; raises an InputError if Slurm rejects it."""
        import submitit

        executor = submitit.SlurmExecutor(Path(job.work_dir) / 'submitit', max_num_timeout=1000)
        try:
            executor.update_parameters(job_name=name, **self.parameters)
            return executor.submit(job).job_id
        except (ValueError, submitit.core.utils.FailedJobError) as error:
            raise InputError(f'Slurm rejects {name}: {str(error).strip()}') from error

    @staticmethod
    def alive(jobs: Sequence[str]) -> dict[str, str]:
        """Returns the states (``queued`` or ``running``) of the jobs that have not ended.

        It does not need accounting (sacct). If Slurm does not answer, all jobs are assumed to be running.
        """
        if not jobs:
            return {}
        command = ['squeue', '--noheader', '--me', '--states=all', '--format=%i %T']
        try:
            answer = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return dict.fromkeys(jobs, 'running')
        kinds = dict.fromkeys(('RUNNING', 'COMPLETING', 'SUSPENDED', 'STOPPED', 'SIGNALING'), 'running')
        kinds |= dict.fromkeys(('PENDING', 'CONFIGURING', 'REQUEUED', 'REQUEUE_HOLD', 'SPECIAL_EXIT'), 'queued')
        states = (line.split() for line in answer.stdout.splitlines())
        return {job: kinds[state] for job, state in states if job in jobs and state in kinds}

    def cancel(self, jobs: Mapping[str, str]) -> str:
        """Cancels the queued jobs and returns a summary; running jobs continue."""
        queued = [job for job, state in jobs.items() if state == 'queued']
        if queued:
            subprocess.run(['scancel', '--state=PENDING', *queued], check=False)
        running = f', {len(jobs) - len(queued)} still running' if len(jobs) > len(queued) else ''
        return f'{len(queued)} queued cancelled{running}'


def check_submitit() -> None:
    """Raises an InputError if submitit, which runs the jobs, cannot be imported."""
    with import_errors('sweeps need submitit', 'pvt_mm[sweep]'):
        importlib.import_module('submitit')


EXECUTORS = {'local': Local, 'slurm': Slurm}
