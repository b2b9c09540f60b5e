"""What the command-line flags of tools/train.py and tools/test.py change in the config."""

import importlib.util
import logging
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.runner.checkpoint import find_latest_checkpoint

from pvt_mm.apis.config import check_file, innermost_dataset
from pvt_mm.apis.ranks import on_first_rank
from pvt_mm.apis.resuming import NEW_SCHEDULE
from pvt_mm.apis.weight_checks import check_resumable
from pvt_mm.utils.errors import CheckpointError, InputError

# The experiment trackers of ``--vis``: MMEngine's backend of each, which needs the package of that name.
TRACKERS = dict(tensorboard='TensorboardVisBackend', wandb='WandbVisBackend', mlflow='MLflowVisBackend')


def set_randomness(config: Config, seed: int | None, deterministic: bool) -> None:
    """Sets ``--seed`` and ``--deterministic``; what is not given stays as the config has it.

    Deterministic algorithms need a workspace of cuBLAS, which is set in the environment unless one is.
    """
    given = {} if seed is None else dict(seed=seed)
    given |= dict(deterministic=True) if deterministic else {}
    config.randomness = {'seed': None, **(config.get('randomness') or {}), **given}
    if config.randomness.get('deterministic'):
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # cuBLAS reads it when CUDA is first used


def use_amp(config: Config, dtype: str) -> None:
    """Turns on mixed precision: ``'fp16'`` with a dynamic loss scale or ``'bf16'`` without one."""
    if not torch.cuda.is_available():
        raise InputError(f'--amp {dtype} needs a GPU, and none is visible: leave it out to train in fp32')
    half = dtype == 'fp16'
    config.optim_wrapper.type = 'AmpOptimWrapper'
    config.optim_wrapper.dtype = 'float16' if half else 'bfloat16'
    config.optim_wrapper.loss_scale = 'dynamic' if half else dict(enabled=False)
    if not half:  # mmcv's CUDA operators have float16, and no bfloat16
        _add_hook(config, 'pvt_mm.Float32OpsHook')


def use_compile(config: Config) -> None:
    """Adds the hook that compiles backbone, neck and dense heads (``--compile``).

    Raises:
        InputError: The config sets MMEngine's ``compile``, which compiles the whole training step.
    """
    if config.get('compile'):
        raise InputError('--compile: compile is set in the config, which compiles the whole training step: use either')
    _add_hook(config, 'pvt_mm.CompileHook')


def use_trackers(config: Config, names: Sequence[str]) -> None:
    """Adds MMEngine's backends of experiment trackers, keys of :data:`TRACKERS`, to the visualizer (``--vis``).

    Raises:
        InputError: The package of one is not installed.
    """
    visualizer = config.get('visualizer') or dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise InputError(f'--vis {name}: {name} is not installed: pip install {name}')
        backend = dict(type=TRACKERS[name])
        if backend not in visualizer['vis_backends']:
            visualizer['vis_backends'] = [*visualizer['vis_backends'], backend]
    config.visualizer = visualizer


def use_new_schedule(config: Config, wanted: bool) -> None:
    """Adds the hook with which a resumed run takes learning rate and schedule from the config (``--new-schedule``)."""
    if wanted:
        _add_hook(config, NEW_SCHEDULE)


def _add_hook(config: Config, kind: str) -> None:
    config.custom_hooks = [*(config.get('custom_hooks') or []), dict(type=kind)]


def scale_lr(config: Config) -> None:
    """Scales the learning rate by the total batch size over ``auto_scale_lr.base_batch_size``."""
    if 'base_batch_size' not in config.get('auto_scale_lr', {}):
        raise InputError('--auto-scale-lr: auto_scale_lr.base_batch_size is not set in the config')
    config.auto_scale_lr.enable = True


def report_batch_size(config: Config, processes: int, logger: logging.Logger) -> None:
    """Logs the batch size of a training and the one that its learning rate is for, and how to scale the rate.

    It is a warning where the two differ and the rate is not scaled. A resumed training keeps the checkpoint's rate.
    """
    images = (config.get('train_dataloader') or {}).get('batch_size')
    if not images:  # the config has a batch sampler of its own
        return
    steps = config.optim_wrapper.get('accumulative_counts', 1)
    scaling = config.get('auto_scale_lr') or {}
    batch, base = processes * images * steps, scaling.get('base_batch_size')
    factors = [f'{processes} process{"es" * (processes > 1)}', f'{images} image{"s" * (images > 1)}']
    factors += [f'{steps} accumulated steps'] if steps > 1 else []
    text, level = f'batch size {batch} ({" x ".join(factors)})', logging.INFO
    if base is None:
        text += '; which one the learning rate is for is not set (auto_scale_lr.base_batch_size)'
    else:
        text += f', and the learning rate is for {base}'
        linear = f'{processes * images / base:.3g}' + (', without the accumulated steps' if steps > 1 else '')
        square_root = f'{math.sqrt(batch / base):.3g} (the square root)'
        if config.get('resume'):
            text += ' (it stays that of the checkpoint)' if base != batch else ''
        elif scaling.get('enable'):
            text += f': it is multiplied by {linear}'
        elif base != batch:
            level = logging.WARNING
            text += f': --auto-scale-lr multiplies it by {linear}; with Adam, {square_root} is as common'
    logger.log(level, text)


def resume(config: Config, what: str) -> str | None:
    """Makes a run resume from a checkpoint, or for ``'auto'`` from the last in its work directory; returns its path.

    Raises:
        InputError: The checkpoint does not exist, or ``'auto'`` found damaged ones only.
    """
    checkpoint = on_first_rank(find_resumable_checkpoint, config.work_dir) if what == 'auto' else what
    config.resume = checkpoint is not None
    config.load_from = checkpoint or config.get('load_from')
    if checkpoint is not None:
        check_file('checkpoint', checkpoint)
    return checkpoint


def warn_of_other_run(work_dir: str) -> None:
    """Warns if a run that starts anew would overwrite the checkpoints of another in its work directory."""
    if os.path.exists(os.path.join(work_dir, 'last_checkpoint')):
        print_log(
            f'{work_dir} has checkpoints of another run, which this one overwrites: use --resume to continue it, or '
            'another --work-dir',
            logger='current',
            level=logging.WARNING,
        )


def find_resumable_checkpoint(work_dir: str) -> str | None:
    """Returns the checkpoint that ``last_checkpoint`` names or, if it is damaged or missing, the newest intact one.

    Raises:
        InputError: There are checkpoints, and all are damaged. (Where there are none, None is returned.)
    """
    named, faults = find_latest_checkpoint(work_dir), []
    if named is not None and not os.path.isfile(named):
        moved = Path(work_dir) / Path(named).name  # the work directory may have been moved since
        named = str(moved) if moved.is_file() else named
    folder = Path(work_dir) if named is None else Path(named).parent
    written = [path for path in folder.glob('*.pth') if re.fullmatch(r'(epoch|iter)_[0-9]+', path.stem)]
    newest_first = sorted(written, key=lambda path: path.stat().st_mtime, reverse=True)
    others = [str(path) for path in newest_first if str(path.absolute()) != os.path.abspath(named or '')]
    for path in others if named is None else [named, *others]:
        try:
            check_resumable(path)
        except CheckpointError as error:
            faults.append(str(error))
            continue
        for fault in faults:
            print_log(f'{fault}: resuming from {path}, the newest intact checkpoint', level=logging.WARNING)
        return path
    if faults:
        raise InputError(f'--resume: all checkpoints in {work_dir} are damaged: {"; ".join(faults)}')
    return None


def draw_predictions(config: Config, show: bool, show_dir: str | None, wait_time: float) -> None:
    """Draws the predictions of the test in windows (``show``, each for ``wait_time`` seconds), into files or both."""
    hook = config.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise InputError(
            '--show and --show-dir: default_hooks.visualization is not set in the config, as in all classifiers: use '
            'tools/demo.py'
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
            raise InputError(f'--tta: {key} is not set in the config')
    config.model = ConfigDict(**config.tta_model, module=config.model)
    innermost_dataset(config.test_dataloader.dataset).pipeline = config.tta_pipeline


def dump_predictions(config: Config, out: str) -> None:
    """Writes the predictions of the test to a pickle or, of segmentors also, to a folder of label maps."""
    metrics = config.test_evaluator if isinstance(config.test_evaluator, list) else [config.test_evaluator]
    if out.endswith(('.pkl', '.pickle')):
        kind = 'DumpDetResults' if config.get('default_scope') == 'mmdet' else 'DumpResults'
        config.test_evaluator = [*metrics, dict(type=kind, out_file_path=out)]
    elif all(metric.type == 'IoUMetric' for metric in metrics):
        for metric in metrics:
            metric.update(output_dir=out, keep_results=True)
    else:
        raise InputError(f'--out {out}: name a .pkl file (a folder of label maps is for segmentation)')
