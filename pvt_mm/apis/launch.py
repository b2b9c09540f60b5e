"""From a config to a runner: work directory, process groups, and one-line errors where a rank exits."""

import argparse
import atexit
import contextlib
import copy
import glob
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, RUNNERS, init_default_scope
from mmengine.runner import Runner
from torch import nn

from pvt_mm.apis.channel_checks import check_widths
from pvt_mm.apis.config import import_scope, load_config
from pvt_mm.apis.ranks import exit_after_another_rank, join_ranks
from pvt_mm.utils.errors import InputError, config_errors

NVIDIA_GPUS = '/dev/nvidia[0-9]*'  # a container may have any of them


def prepare_config(args: argparse.Namespace) -> Config:
    """Returns the config that the command line asks for, with a work directory that can be written and its launcher.

    By default that is ``work_dirs/<config>``, or with ``data`` ``work_dirs/<config>_<folder of the data>``.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    config = load_config(args.config, args.cfg_options)
    import_scope(config)
    config.launcher = args.launcher
    name = '_'.join([Path(args.config).stem, *name_of_data(getattr(args, 'data', ()))])
    config.work_dir = args.work_dir or config.get('work_dir') or os.path.join('work_dirs', name)
    _check_work_dir(config.work_dir)
    join_ranks(config.launcher)
    if not torch.cuda.is_available():
        warn_of_unused_gpu()
        _distribute_on_cpu(config)
    init_default_scope(config.get('default_scope', 'mmengine'))
    return config


def name_of_data(paths: Sequence[str]) -> list[str]:
    """Returns the name of the folder of the user's data (``--data``): that of a json, and not its ``annotations``."""
    if not paths:
        return []
    folder = Path(os.path.abspath(paths[0]))
    folder = folder if folder.is_dir() else folder.parent
    return [folder.parent.name if folder.name == 'annotations' else folder.name]


def build_model(config: Config) -> nn.Module:
    """Builds the model of a config on the CPU, as the runner will, or raises an InputError.

    The runner logs the environment and the config before it builds anything: an error before that is one line.
    """
    cfg = copy.deepcopy(config.model)
    if config.get('data_preprocessor') is not None:
        cfg.setdefault('data_preprocessor', copy.deepcopy(config.data_preprocessor))
    with config_errors('the config cannot be built'):
        model = MODELS.build(cfg)
    check_widths(config.model, model)
    return model


def build_runner(config: Config) -> Runner:
    """Builds the runner of a config, or raises an InputError: an unknown type, a wrong argument."""
    with config_errors('the config cannot be built'):
        return RUNNERS.build(config) if 'runner_type' in config else Runner.from_cfg(config)


@contextlib.contextmanager
def report_lost_ranks() -> Iterator[None]:
    """Turns the error of a rank whose peer has exited into one line and a SystemExit."""
    try:
        yield
    except RuntimeError as error:
        if not re.search('gloo/transport|remote process exited', str(error)):
            raise
        exit_after_another_rank()


@contextlib.contextmanager
def report_unknown_arguments() -> Iterator[None]:
    """Turns the error of a class that does not know an argument of its config into an InputError.

    MMEngine builds optimizers, data loaders and loops only when training or testing starts.
    """
    try:
        yield
    except TypeError as error:
        if '__init__() got an unexpected keyword argument' not in str(error):
            raise
        raise InputError(f'the config cannot be built: {error}') from error


def warn_of_unused_gpu() -> None:
    """Warns in one line that everything runs on the CPU if the machine has an NVIDIA GPU which torch cannot use.

    ``CUDA_VISIBLE_DEVICES=`` (or -1) hides the GPUs on purpose: no warning then. One rank of each machine warns.
    """
    hidden = os.environ.get('CUDA_VISIBLE_DEVICES', '0').strip() in ('', '-1')
    ranks = {os.environ.get(name, '0') for name in ('LOCAL_RANK', 'SLURM_LOCALID')}
    if hidden or ranks != {'0'} or not glob.glob(NVIDIA_GPUS):
        return
    cuda = torch.version.cuda
    why = f'the driver may be too old for its CUDA {cuda}' if cuda else 'it is built for the CPU'
    sys.stderr.write(
        f'warning: this machine has a GPU that torch {torch.__version__} cannot use ({why}), so the CPU is used: '
        'docs/install.md has the builds for each driver\n'
    )


def _check_work_dir(work_dir: str) -> None:
    """Raises an InputError if the work directory cannot be made, without making it: MMEngine does, after all checks."""
    folder = Path(work_dir).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            return
    except NotADirectoryError:
        why = f'{there} is a file'
    except OSError:  # os.access says that root can write everywhere
        why = f'{there} cannot be written'
    raise InputError(f'the work directory {work_dir} cannot be made: {why}; choose another with --work-dir')


def _distribute_on_cpu(config: Config) -> None:
    """Joins the ranks by gloo and wraps the model, which MMEngine does for GPUs only."""
    if config.launcher != 'none' and not torch.distributed.is_initialized():
        try:
            torch.distributed.init_process_group('gloo')
        except RuntimeError as error:
            if 'gloo' not in str(error) or 'closed by peer' in str(error):
                raise
            raise InputError(
                f'the ranks cannot connect by gloo ({str(error).splitlines()[0]}): set GLOO_SOCKET_IFNAME to the '
                'network interface of the machines, such as eth0; their host names may resolve to 127.0.1.1'
            ) from error
        atexit.register(leave_process_group)
        unused = config.get('find_unused_parameters', False)
        config.setdefault('model_wrapper_cfg', dict(broadcast_buffers=False, find_unused_parameters=unused))
        config.model_wrapper_cfg.setdefault('device_ids', None)


def leave_process_group() -> None:
    """Destroys the process group once its threads are idle."""
    # Gloo's threads release the tensors of the last collective shortly after it returns, and need Python for it. If the
    # interpreter is shutting down by then, they abort the process ("terminate called without an active exception").
    time.sleep(0.5)
    torch.distributed.destroy_process_group()
