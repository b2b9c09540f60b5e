"""The definition of a sweep: its file, and the trials it consists of."""

import difflib
import fnmatch
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pvt_mm.apis.command_line import parse_options
from pvt_mm.apis.config import load_config
from pvt_mm.utils.errors import InputError
from pvt_mm.utils.text import shorten

SETTINGS = ('title', 'metric', 'rule', 'configs', 'options', 'seeds', 'exclude')


@dataclass(frozen=True)
class Trial:
    """One training of a sweep: a setting, which is the names of its config and its options, and a seed.

    Attributes:
        options: Its ``--cfg-options``, each ``KEY=VALUE``.
        epochs: None if training counts iterations.
        gpus: Number of GPUs of the batch size that its learning rate is for; None if its config does not set it.
    """

    setting: str
    config: str
    options: tuple[str, ...]
    seed: int
    epochs: int | None = field(compare=False)
    gpus: float | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """The name of the trial and of its work directory."""
        return f'{self.setting}-seed{self.seed}'


@dataclass(frozen=True)
class Sweep:
    """The trials of a sweep, the metric that compares them, and its rule, ``'greater'`` or ``'less'``."""

    name: str
    title: str
    metric: str
    rule: str
    trials: tuple[Trial, ...]


def load_sweep(path: str, options: Sequence[str] = (), seeds: Sequence[int] | None = None) -> Sweep:
    """Reads a sweep and the configs of its trials.

    A sweep is a Python file that sets

    - ``configs``: paths relative to the file, a list or a dict by name;
    - ``metric``: its name in the training log;
    - ``options``: a dict of lists of ``--cfg-options`` by name, or a list of such dicts, which are combined;
    - ``seeds`` (default: 0);
    - ``exclude``: patterns of the names of trials to leave out, such as ``'pvt_l*-seed2'``;
    - ``rule`` (default: ``'greater'``) and ``title``.

    Other names are variables of the file. ``options`` are ``--cfg-options`` of every trial, which a trial's own
    override; ``seeds`` override those of the file.

    Raises:
        InputError: The file does not exist or is not a sweep, a config does not exist, options do not fit a config, two
            trials have the same name, or a pattern of ``exclude`` matches no trial.
    """
    config = load_config(path, needs=())
    if missing := [key for key in ('configs', 'metric') if not config.get(key)]:
        raise InputError(f'{path} is not a sweep: {" and ".join(missing)} not set; settings are {", ".join(SETTINGS)}')
    for key in config.keys() - set(SETTINGS):
        if near := difflib.get_close_matches(key, SETTINGS, n=1, cutoff=0.8):
            raise InputError(f'{path}: a sweep has no {key}; did you mean {near[0]}?')
    rule, seeds, exclude = config.get('rule', 'greater'), seeds or config.get('seeds', (0,)), config.get('exclude', ())
    if rule not in ('greater', 'less'):
        raise InputError(f"{path}: rule must be 'greater' or 'less', not {rule!r}")
    if not seeds or not _is_list(seeds, int):
        raise InputError(f'{path}: seeds must be a list of integers, such as [0, 1, 2], not {seeds!r}')
    if not _is_list(exclude, str):
        raise InputError(f"{path}: exclude must be a list of patterns, such as ['pvt_l*-seed2'], not {exclude!r}")
    configs, axes = _named_configs(path, config.configs), _named_options(path, config.get('options') or {})
    trials = []
    for (name, base), *chosen in itertools.product(configs.items(), *(axis.items() for axis in axes)):
        base = os.path.relpath(Path(path).parent / base)
        own = (*options, *(option for _, values in chosen for option in values))
        epochs, gpus = _epochs_and_gpus(path, base, own)
        setting = '-'.join([name, *(name for name, _ in chosen)])
        trials += [Trial(setting, base, own, seed, epochs, gpus) for seed in seeds]
    names = [trial.name for trial in trials]
    for pattern in exclude:
        if not fnmatch.filter(names, pattern):
            raise InputError(f'{path}: exclude pattern {pattern} matches none of the trials {shorten(names)}')
    kept = tuple(trial for trial in trials if not any(fnmatch.fnmatch(trial.name, pattern) for pattern in exclude))
    if not kept:
        raise InputError(f'{path}: all trials are excluded')
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f'{path}: two trials have the name {twice[0]}')
    return Sweep(Path(path).stem, config.get('title', Path(path).stem), config.metric, rule, kept)


def _named_configs(path: str, configs: Any) -> Mapping[str, str]:
    if _is_list(configs, str) and len({Path(base).stem for base in configs}) == len(configs):
        return {Path(base).stem: base for base in configs}
    if not isinstance(configs, Mapping) or not _is_list(list(configs.values()), str):
        raise InputError(f'{path}: configs must be a list of paths with different names, or a dict of paths by name')
    _check_names(path, configs)
    return configs


def _named_options(path: str, options: Any) -> list[Mapping[str, list[str]]]:
    axes = [axis for axis in (options if isinstance(options, (list, tuple)) else [options]) if axis != {}]
    for axis in axes:
        if not isinstance(axis, Mapping) or not all(_is_list(values, str) for values in axis.values()):
            example = "dict(slow=['optim_wrapper.optimizer.lr=1e-5'])"
            raise InputError(f'{path}: options must be a dict of lists by name, such as {example}')
        _check_names(path, axis)
    return axes


def _check_names(path: str, names: Mapping) -> None:
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r'[\w.+-]+', name) or name.startswith('.'):
            raise InputError(f'{path}: {name!r} becomes a part of folder names: use letters, digits and . _ + - only')


def _is_list(values: Any, kind: type) -> bool:
    return isinstance(values, (list, tuple, range)) and all(isinstance(value, kind) for value in values)


def _epochs_and_gpus(path: str, config: str, options: Sequence[str]) -> tuple[int | None, float | None]:
    """Returns a trial's ``epochs`` and ``gpus``, which also checks that its options fit its config."""
    try:
        read = load_config(config, parse_options(options))
    except ValueError as error:  # or an InputError
        raise InputError(f'{path}: {error}') from error
    batch = (read.get('train_dataloader') or {}).get('batch_size')
    base = (read.get('auto_scale_lr') or {}).get('base_batch_size')
    return (read.get('train_cfg') or {}).get('max_epochs'), base / batch if base and batch else None
