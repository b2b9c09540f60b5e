"""From a config to a runner: process groups, Slurm, and errors of a run in one line."""

import argparse
import atexit
import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS, init_default_scope
from mmengine.runner import Runner

from pvt_mm.apis.config import load_config
from pvt_mm.utils.errors import WRONG_CONFIG, InputError


def prepare_config(args: argparse.Namespace) -> Config:
    """Returns the config that the command line asks for, with its work directory and its launcher set.

    Raises:
        InputError: See :func:`load_config`; or the work directory cannot be written.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    config = load_config(args.config, args.cfg_options)
    config.launcher = args.launcher
    config.work_dir = args.work_dir or config.get('work_dir') or os.path.join('work_dirs', Path(args.config).stem)
    # MMEngine makes it, once nothing is found wrong
    folder = Path(config.work_dir).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        why = f'{there} cannot be written' if there.is_dir() else f'{there} is a file'
        raise InputError(f'the work directory {config.work_dir} cannot be made: {why}; choose another with --work-dir')
    if not torch.cuda.is_available():
        _distribute_on_cpu(config)
    init_default_scope(config.get('default_scope', 'mmengine'))
    return config


def _distribute_on_cpu(config: Config) -> None:
    """Does what MMEngine does for GPUs alone: joins torchrun's or Slurm's processes by gloo, and wraps the model."""
    if config.launcher == 'slurm':
        _name_slurm_tasks()
    if config.launcher in ('pytorch', 'slurm') and not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
        atexit.register(leave_process_group)
        config.setdefault('model_wrapper_cfg', dict(broadcast_buffers=False, device_ids=None))


def _name_slurm_tasks() -> None:
    """Says in torchrun's variables which of Slurm's tasks this is, and where they meet.

    Raises:
        InputError: This is no task of Slurm's.
    """
    try:
        names = {'RANK': 'SLURM_PROCID', 'WORLD_SIZE': 'SLURM_NTASKS', 'LOCAL_RANK': 'SLURM_LOCALID'}
        os.environ.update({name: os.environ[theirs] for name, theirs in names.items()})
        nodes = subprocess.run(
            ['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']], capture_output=True, text=True, check=True
        )
    except (KeyError, OSError, subprocess.CalledProcessError) as error:
        raise InputError(
            f'--launcher slurm: this is no task of Slurm ({error}); start it by tools/slurm_train.sh'
        ) from error
    os.environ.setdefault('MASTER_ADDR', nodes.stdout.split()[0])
    # a port for each job: two may share a node
    os.environ.setdefault('MASTER_PORT', str(20000 + int(os.environ['SLURM_JOB_ID']) % 10000))


def leave_process_group() -> None:
    """Leaves the process group, once nothing is under way in it."""
    # Gloo's threads let go of the last collective's tensors a moment after it returns, and need Python for it: where
    # the interpreter is ending by then, they abort the process ("terminate called without an active exception").
    time.sleep(0.5)
    torch.distributed.destroy_process_group()


def build_runner(config: Config) -> Runner:
    """Builds the runner of a config: the environment and the model.

    Raises:
        InputError: A part cannot be built: an unknown type, a wrong argument.
    """
    try:
        return RUNNERS.build(config) if 'runner_type' in config else Runner.from_cfg(config)
    except (*WRONG_CONFIG, OSError) as error:
        raise InputError(f'the config cannot be built: {type(error).__name__}: {error}') from error


@contextlib.contextmanager
def report_lost_ranks() -> Iterator[None]:
    """Turns the error of a process that another one has left alone into one line.

    Raises:
        SystemExit: Another process has ended, and with it the training.
    """
    try:
        yield
    except RuntimeError as error:
        if not re.search('gloo/transport|remote process exited', str(error)):
            raise
        sys.stderr.write('error: another process of the training has ended: look for what it said\n')
        time.sleep(1)  # torchrun tells of the one that it sees to end first
        raise SystemExit(1) from error
