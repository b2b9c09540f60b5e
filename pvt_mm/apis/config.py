"""Reading a config file and overriding settings in it."""

import contextlib
import difflib
import importlib
import inspect
import io
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import is_model_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import FlexibleRunner, Runner
from torch import nn

from pvt_mm.apis.command_line import suggest_path
from pvt_mm.utils.errors import InputError, config_errors
from pvt_mm.utils.text import shorten

# Settings that take effect in addition to those that MMEngine's runners read.
READ_BY_TOOLS = ('data_root', 'auto_scale_lr', 'runner_type', 'tta_model', 'tta_pipeline')
SPLITS = ('train', 'val', 'test')
NOT_MISSED = 'Could not import OneDL'  # the forks print it for an optional package of their maker


def load_config(path: str, options: dict | None = None, needs: tuple[str, ...] = ('model',)) -> Config:
    """Reads a config and overrides settings in it.

    ``options`` are settings by their dotted names; ``data_root`` among them moves the data sets and evaluators whose
    paths begin with the config's own. ``needs`` are top-level settings that must be there.

    Raises:
        InputError: The file does not exist or is not a config, an option begins with a name that nothing reads, or a
            part is missing or not a dict.
    """
    check_file('config', path)
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
    with config_errors(f'--cfg-options do not fit {path}', RecursionError):
        config.merge_from_dict(options)
    _check_parts(path, config, needs)
    _check_compile(path, config)
    return config


def import_scope(config: Config) -> None:
    """Imports the package that a config is for; MMEngine would pass over the failure of an import.

    Raises:
        InputError: It fails. The message names tools/doctor.py.
    """
    scope = config.get('default_scope')
    if scope not in ('mmdet', 'mmseg'):
        return
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            for part in ('models', 'datasets'):
                importlib.import_module(f'{scope}.{part}')
    except Exception as error:  # a wrong MMCV raises AssertionError, a wrong NumPy ValueError
        raise InputError(
            f'{scope} cannot be imported: {type(error).__name__}: {error}; tools/doctor.py says how to fix it'
        ) from error
    finally:
        sys.stdout.writelines(line for line in printed.getvalue().splitlines(True) if not line.startswith(NOT_MISSED))


def check_file(kind: str, path: str) -> None:
    """Raises an InputError if a path of the given kind, such as ``'config'``, is no file; URLs are not checked."""
    if '://' not in path and not os.path.isfile(path):
        what = 'is a folder' if os.path.isdir(path) else f'does not exist{suggest_path(path)}'
        raise InputError(f'the {kind} {path} {what}')


def leaf_datasets(dataset: dict) -> Iterator[dict]:
    """Yields the data sets inside wrappers such as RepeatDataset and ConcatDataset, or the data set itself."""
    inner = [dataset['dataset']] if 'dataset' in dataset else dataset.get('datasets')
    if inner is None:
        yield dataset
    else:
        for part in inner:
            yield from leaf_datasets(part)


def innermost_dataset(dataset: dict) -> dict:
    """Returns the first data set inside wrappers such as RepeatDataset, or the data set itself."""
    return next(leaf_datasets(dataset))


def annotation_steps(dataset: dict) -> list[dict]:
    """Returns the transforms of a data set that load annotations."""
    return [step for step in dataset.get('pipeline') or () if type_name(step) == 'LoadAnnotations']


def settings_in(config: dict, where: str) -> Iterator[tuple[str, Any]]:
    """Yields the dotted name and the value of each setting in a part of a config."""
    for name, value in config.items():
        yield f'{where}.{name}', value
        if isinstance(value, dict):
            yield from settings_in(value, f'{where}.{name}')


def type_name(config: dict) -> str:
    """Returns the class name in a config, without its scope; ``type`` may be a class."""
    return getattr(config['type'], '__name__', config['type']).split('.')[-1]


def as_list(value: list | dict | None) -> list:
    """Returns a setting that may be one dict, several or None as a list."""
    return value if isinstance(value, list) else [value] if value else []


def settings_of(runner: type) -> set[str]:
    """Returns the top-level settings that a runner and its bases read: arguments, and what they ask the config for.

    The latter, such as ``compile`` and ``find_unused_parameters``, are in their source only.
    """
    bases = [base for base in runner.__mro__ if base is not object]
    arguments = {name for base in bases for name in inspect.signature(base).parameters}
    asked = re.findall(r'\bcfg\.get\(\s*[\'"](\w+)', '\n'.join(map(inspect.getsource, bases)))
    return {*arguments, *asked} - {'cfg'}


def check_submodules(config: Config, model: nn.Module) -> None:
    """Raises an InputError where a setting of MMEngine's Runner names a submodule that the model does not have."""
    model = model.module if is_model_wrapper(model) else model
    for setting in ('activation_checkpointing', 'efficient_conv_bn_eval'):
        names = config.get(setting) or []
        for name in [names] if isinstance(names, str) else names:
            with config_errors(setting):
                model.get_submodule(name)


def _check_parts(path: str, config: Config, needs: tuple[str, ...]) -> None:
    """Raises an InputError where the config lacks what it needs, or a part that is read from it is not a dict."""
    loaders = [f'{split}_dataloader' for split in SPLITS]
    parts = {name: config.get(name) for name in ('model', *loaders)}
    parts |= {f'{name}.dataset': parts[name].get('dataset') for name in loaders if isinstance(parts[name], dict)}
    for name, part in parts.items():
        if part is None and (name in needs or name.endswith('.dataset')):
            raise InputError(f'{path} has no {name}: is it the config of a model?')
        if part is not None and not isinstance(part, dict):
            raise InputError(f'{path}: {name} is {part!r:.80}, and must be a dict')


def _check_compile(path: str, config: Config) -> None:
    """Raises an InputError where MMEngine would refuse ``compile`` at the first step."""
    compiled, arguments = config.get('compile') or {}, list(inspect.signature(torch.compile).parameters)[1:]
    if compiled is not True and (not isinstance(compiled, dict) or not compiled.keys() <= {*arguments}):
        must = f'must be True, False or a dict of arguments of torch.compile: {", ".join(arguments)}'
        raise InputError(f'{path}: compile is {compiled!r:.80}, and {must}')


def _check_option_names(options: dict, config: Config) -> None:
    runner = RUNNERS.get(str(options.get('runner_type', config.get('runner_type', 'Runner')))) or Runner
    read = settings_of(runner) | {*READ_BY_TOOLS}
    for key in options:
        name = key.split('.')[0]
        if name in read:
            continue
        if name in settings_of(FlexibleRunner):
            raise InputError(f'--cfg-options {key}: {name} is for runner_type=FlexibleRunner only')
        if name in config:
            raise InputError(
                f'--cfg-options {key}: {name} is a variable inside the config, which is read before the options are: '
                'override the settings that use it, as in train_dataloader.dataset.metainfo.classes'
            )
        near = difflib.get_close_matches(name, [*read, *config.keys()], n=1)
        hint = f'; did you mean {near[0]}?' if near else f'; it has {shorten(sorted(config.keys()), 50)}'
        raise InputError(f'--cfg-options {key}: the config has no {name}{hint}')


def _open(config: Config, names: list[str]) -> None:
    """Replaces None above an option by an empty dict, such as ``init_cfg=None`` where ``init_cfg.type`` is set."""
    part = config._cfg_dict
    for name in names[:-1]:
        if not isinstance(part, dict) or name not in part:
            return
        if part[name] is None:
            part[name] = ConfigDict()
        part = part[name]


def _move_data(config: Config, old: str | None, new: str) -> None:
    """Replaces the data root ``old`` at the start of every path of a config's data sets and evaluators by ``new``."""
    if not old:
        raise InputError('--cfg-options data_root=...: data_root is not set in the config, so it cannot be moved')
    new = str(new).rstrip('/') + '/'

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: moved(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(moved(inner) for inner in value)
        if isinstance(value, str) and (value == old or value.startswith(old.rstrip('/') + '/')):
            return new + value[len(old) :].lstrip('/')
        return value

    for split in SPLITS:
        for part in (f'{split}_dataloader', f'{split}_evaluator'):
            if config.get(part):
                config[part] = moved(config[part])
