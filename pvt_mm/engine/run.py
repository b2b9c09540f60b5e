"""From a config file and a command line's flags to a runner: what ``tools/train.py`` and ``tools/test.py`` share."""

import argparse
import atexit
import contextlib
import difflib
import inspect
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.logging import print_log
from mmengine.registry import RUNNERS, init_default_scope
from mmengine.runner import CheckpointLoader, Runner
from mmengine.runner.checkpoint import find_latest_checkpoint

from pvt_mm.checkpoint import CheckpointError, add_trust, read_file
from pvt_mm.engine.checks import check_resumable
from pvt_mm.errors import WRONG_CONFIG, InputError

# Settings beside the arguments of MMEngine's Runner that take effect.
READ_BY_TOOLS = ('data_root', 'auto_scale_lr', 'runner_type', 'tta_model', 'tta_pipeline')
# Those that MMEngine has readers for, all of which run what a file asks for where it cannot be read otherwise.
SCHEMES = ('', 'http://', 'https://', 'torchvision://', 'modelzoo://', 'open-mmlab://', 'openmmlab://', 'mmcls://')
SCHEMES += ('pavi://', r'(\S+\:)?s3://', r'(\S+\:)?petrel://')


@CheckpointLoader.register_scheme(SCHEMES, force=True)
def load_from_pvt_mm(path: str, map_location: str | None = None) -> Any:
    """Reads a checkpoint for MMEngine: as :func:`read_file` does, and without what a run that resumes would execute."""
    content = read_file(path, map_location or 'cpu')
    if isinstance(content, dict) and isinstance(content.get('meta'), dict):
        content['meta'].pop('config', None)  # MMCV's; Runner.resume runs it as Python to look for GPU ids
    return content


class CfgOptions(DictAction):
    """MMEngine's ``--cfg-options`` action, with a usage error in place of a traceback."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: str | None = None):
        try:
            super().__call__(parser, namespace, values, option_string)
        except (ValueError, AssertionError, RecursionError) as error:
            parser.error(f'--cfg-options takes KEY=VALUE pairs, got {" ".join(values)!r} ({error})')


def add_cfg_options(parser: argparse.ArgumentParser, more: str = '') -> None:
    """Adds ``--cfg-options``, with ``more`` at the end of its help."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=CfgOptions,
        metavar='KEY=VALUE',
        help=f'override settings of the config{more}',
    )


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that training and testing share."""
    parser.add_argument('--work-dir', help='where logs and results go (default: work_dirs/<name of the config>)')
    more = (
        ', e.g. model.backbone.drop_path_rate=0.2; lists as key="[a,b]" or key=a,b; data_root=PATH moves every data '
        'set of the config'
    )
    add_cfg_options(parser, more)
    add_trust(parser)
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none', help='job launcher')
    # torchrun and torch.distributed.launch pass it in either spelling
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def load_config(path: str, options: dict | None = None, needs: tuple[str, ...] = ('model',)) -> Config:
    """Reads a config and overrides settings in it.

    ``data_root`` among the options moves the data sets and evaluators that were written with the config's own.

    Args:
        path: The config's file.
        options: Settings by their dotted names.
        needs: What the config must have.

    Raises:
        InputError: The file is not there or is no config, an option begins with a name that no config has, or a part is
            missing or no dict.
    """
    if not os.path.isfile(path):
        what = 'is a folder' if os.path.isdir(path) else 'does not exist'
        raise InputError(f'the config {path} {what}{_near(path)}')
    try:
        config = Config.fromfile(path)
    except Exception as error:  # a config is Python: it can fail in any way
        raise InputError(f'the config {path} cannot be read: {type(error).__name__}: {error}') from error
    options = dict(options or {})
    _check_option_names(options, config)
    if 'data_root' in options:
        _move_data(config, config.get('data_root'), options['data_root'])
    for key in options:
        _open(config, key.split('.'))
    try:
        config.merge_from_dict(options)
    except (*WRONG_CONFIG, IndexError, RecursionError) as error:
        raise InputError(f'--cfg-options do not fit {path}: {error}') from error
    _check_parts(path, config, needs)
    return config


def _check_parts(path: str, config: Config, needs: tuple[str, ...]) -> None:
    """Raises an InputError where the config lacks what it needs, or a part that is looked into is no dict."""
    loaders = [f'{split}_dataloader' for split in ('train', 'val', 'test')]
    parts = {name: config.get(name) for name in ('model', *loaders)}
    parts |= {f'{name}.dataset': parts[name].get('dataset') for name in loaders if isinstance(parts[name], dict)}
    for name, part in parts.items():
        if part is None and (name in needs or name.endswith('.dataset')):
            raise InputError(f'{path} has no {name}: is it the config of a model?')
        if part is not None and not isinstance(part, dict):
            raise InputError(f'{path}: {name} is {part!r:.80}, and must be a dict')


def check_checkpoint_exists(path: str) -> None:
    """Raises an InputError if a checkpoint, unless it is elsewhere than on disk, does not exist."""
    if '://' not in path and not os.path.isfile(path):
        what = 'is a folder' if os.path.isdir(path) else 'does not exist'
        raise InputError(f'the checkpoint {path} {what}{_near(path)}')


def _near(path: str) -> str:
    """Returns a question after the file of the same kind, in its folder or the nearest, whose name is near, if any."""
    folder = Path(path).parent
    if not folder.is_dir():
        folders = [str(other) for other in folder.parent.glob('*/')]
        folder = Path(*difflib.get_close_matches(str(folder), folders, n=1))
    others = [str(other) for other in folder.glob(f'*{Path(path).suffix or ".*"}')]
    near = difflib.get_close_matches(path, others, n=1, cutoff=0.5)
    return f'; did you mean {near[0]}?' if near else ''


def _check_option_names(options: dict, config: Config) -> None:
    read = {*inspect.signature(Runner.__init__).parameters, *READ_BY_TOOLS}
    for key in options:
        name = key.split('.')[0]
        if name in read:
            continue
        if name in config:
            raise InputError(
                f'--cfg-options {key}: {name} is a variable inside the config, which is read before the options are: '
                'override the settings that use it, as in train_dataloader.dataset.metainfo.classes'
            )
        near = difflib.get_close_matches(name, [*read, *config.keys()], n=1)
        hint = f'; did you mean {near[0]}?' if near else f'; it has {", ".join(sorted(config.keys()))}'
        raise InputError(f'--cfg-options {key}: the config has no {name}{hint}')


def _open(config: Config, names: list[str]) -> None:
    """Makes a dict of what is None above an option, such as the init_cfg where a config starts from random weights."""
    part = config._cfg_dict
    for name in names[:-1]:
        if not isinstance(part, dict) or name not in part:
            return
        if part[name] is None:
            part[name] = ConfigDict()
        part = part[name]


def _move_data(config: Config, old: str | None, new: str) -> None:
    """Replaces the data root ``old`` at the front of every path of the data sets and evaluators of a config."""
    if not old:
        raise InputError('--cfg-options data_root=...: the config has no data_root to move')
    new = str(new).rstrip('/') + '/'

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: moved(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(moved(inner) for inner in value)
        if isinstance(value, str) and (value == old or value.startswith(old.rstrip('/') + '/')):
            return new + value[len(old) :].lstrip('/')
        return value

    for name in ('train', 'val', 'test'):
        for part in (f'{name}_dataloader', f'{name}_evaluator'):
            if config.get(part):
                config[part] = moved(config[part])


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
def unreadable_images_named() -> Iterator[None]:
    """Turns the error of an image that is missing or damaged, here or in a worker process, into one line.

    Raises:
        InputError: An image cannot be read; the message says which.
    """
    try:
        yield
    except (AssertionError, FileNotFoundError) as error:
        found = re.findall(r"failed to load image: (.+)|No such file or directory: '(.+)'", str(error))
        if not found:
            raise
        damaged, absent = found[-1]  # a worker's message has its traceback, source lines included, before it
        what = f'{damaged} is damaged' if damaged else f'{absent} does not exist'
        raise InputError(f'an image cannot be read: {what}; restore it, or take it out of the annotations') from error


@contextlib.contextmanager
def lost_processes_named() -> Iterator[None]:
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


# ------------------------------------------------------------------------------------------------ what the flags mean


def set_randomness(config: Config, seed: int | None, deterministic: bool) -> None:
    """Sets the seed and the determinism of a run, leaving what is not asked for as the config has it."""
    asked = dict(seed=seed, deterministic=deterministic or None)
    given = {key: value for key, value in asked.items() if value is not None}
    config.randomness = {'seed': None, **(config.get('randomness') or {}), **given}


def use_amp(config: Config, dtype: str) -> None:
    """Turns on mixed precision, ``fp16`` with a dynamic loss scale or ``bf16`` without one."""
    if not torch.cuda.is_available():
        raise InputError(f'--amp {dtype} needs a GPU, and none is visible here: leave it out to train in fp32')
    half = dtype == 'fp16'
    config.optim_wrapper.type = 'AmpOptimWrapper'
    config.optim_wrapper.dtype = 'float16' if half else 'bfloat16'
    config.optim_wrapper.loss_scale = 'dynamic' if half else dict(enabled=False)


def scale_lr(config: Config) -> None:
    """Turns on the scaling of the learning rate by the batch size over the config's ``auto_scale_lr``."""
    if 'base_batch_size' not in config.get('auto_scale_lr', {}):
        raise InputError('--auto-scale-lr: the config does not say auto_scale_lr.base_batch_size')
    config.auto_scale_lr.enable = True


def skip_validation(config: Config) -> None:
    """Leaves out the evaluation during training."""
    config.val_cfg = config.val_dataloader = config.val_evaluator = None


def resume(config: Config, what: str) -> str | None:
    """Makes the run resume from the checkpoint ``what``, or for ``auto`` from the last whole one in its work directory.

    Returns:
        The checkpoint, or None where ``auto`` found none and the run starts anew.

    Raises:
        InputError: The checkpoint does not exist, or ``auto`` found damaged ones only.
    """
    checkpoint = last_whole_checkpoint(config.work_dir) if what == 'auto' else what
    if checkpoint is not None and not os.path.isfile(checkpoint):
        raise InputError(f'--resume: the checkpoint {checkpoint} does not exist{_near(checkpoint)}')
    config.resume = checkpoint is not None
    config.load_from = checkpoint
    return checkpoint


def last_whole_checkpoint(work_dir: str) -> str | None:
    """Returns the checkpoint that ``last_checkpoint`` names, or where it is damaged or gone, the newest that is whole.

    Returns:
        The checkpoint's path, or None where the run has not come to its first.

    Raises:
        InputError: There were some, and none is whole.
    """
    named, candidates = find_latest_checkpoint(work_dir), []
    if named is not None:
        moved = Path(work_dir) / Path(named).name  # the folder, since it was written
        candidates = [named if os.path.isfile(named) or not moved.is_file() else str(moved)]
    folder = Path(candidates[0]).parent if candidates else Path(work_dir)
    written = [path for path in folder.glob('*.pth') if re.fullmatch(r'(epoch|iter)_[0-9]+', path.stem)]
    newest_first = sorted(written, key=lambda path: path.stat().st_mtime, reverse=True)
    candidates += [str(path) for path in newest_first if str(path.absolute()) not in map(os.path.abspath, candidates)]
    if not candidates:
        return None
    faults = []
    for path in candidates:
        try:
            check_resumable(path)
        except CheckpointError as error:
            faults.append(str(error))
            continue
        for fault in faults:
            print_log(f'{fault}: going on from {path}, the newest that is whole', level=logging.WARNING)
        return path
    raise InputError(f'--resume: no checkpoint in {work_dir} is whole: {"; ".join(faults)}')


def draw_predictions(config: Config, show: bool, show_dir: str | None, wait_time: float) -> None:
    """Makes the test draw its predictions, in windows, in files or both."""
    hook = config.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise InputError(
            '--show and --show-dir need default_hooks.visualization in the config, which classifiers have not: '
            'tools/demo.py draws their predictions'
        )
    hook.draw = True
    hook.show, hook.wait_time = show, wait_time
    if show_dir and hook.type.startswith('Det'):
        hook.test_out_dir = show_dir
    elif show_dir:
        config.visualizer.save_dir = show_dir


def use_tta(config: Config) -> None:
    """Wraps the model and the test pipeline of a config in its test-time augmentation."""
    for key in ('tta_model', 'tta_pipeline'):
        if key not in config:
            raise InputError(f'--tta: the config has no {key}')
    config.model = ConfigDict(**config.tta_model, module=config.model)
    dataset = config.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    dataset.pipeline = config.tta_pipeline


def dump_predictions(config: Config, out: str) -> None:
    """Makes the test write its predictions: to a pickle, or for segmentation also to a folder of label maps."""
    metrics = config.test_evaluator if isinstance(config.test_evaluator, list) else [config.test_evaluator]
    if out.endswith(('.pkl', '.pickle')):
        kind = 'DumpDetResults' if config.get('default_scope') == 'mmdet' else 'DumpResults'
        config.test_evaluator = [*metrics, dict(type=kind, out_file_path=out)]
    elif all(metric.type == 'IoUMetric' for metric in metrics):
        for metric in metrics:
            metric.update(output_dir=out, keep_results=True)
    else:
        raise InputError(f'--out {out}: name a .pkl file (a folder of label maps is for segmentation)')
