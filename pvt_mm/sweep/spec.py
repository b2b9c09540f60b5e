"""What a sweep is: the file that says so, and the trials that follow from it."""

import argparse
import difflib
import fnmatch
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

from pvt_mm.engine.run import CfgOptions, load_config
from pvt_mm.errors import InputError

SETTINGS = ('title', 'metric', 'rule', 'configs', 'options', 'seeds', 'exclude')


@dataclass(frozen=True)
class Trial:
    """One training of a sweep.

    Attributes:
        setting: The names of its config and options: what a report averages over seeds.
        config: The path of its config.
        options: Its ``--cfg-options``, each ``KEY=VALUE``.
        seed: Its seed.
        epochs: How many epochs it trains; None if it counts iterations.
        gpus: How many GPUs make the batch that its learning rate is for; None if its config does not say.
    """

    setting: str
    config: str
    options: tuple[str, ...]
    seed: int
    epochs: int | None = field(compare=False)
    gpus: float | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """Its name, and its work directory's."""
        return f'{self.setting}-seed{self.seed}'


@dataclass(frozen=True)
class Sweep:
    """The trials of a sweep, and the metric they are compared by, of which ``'greater'`` or ``'less'`` is better."""

    name: str
    title: str
    metric: str
    rule: str
    trials: tuple[Trial, ...]


def load_sweep(path: str, options: Sequence[str] = (), seeds: Sequence[int] | None = None) -> Sweep:
    """Reads a sweep, and every config of it with its options.

    A sweep is a Python file that sets

    - ``configs``: paths relative to it, a list or a dict by name;
    - ``metric``: as the training log names it;
    - ``options``: lists of ``--cfg-options`` by name, or several such dicts, of which every combination is tried;
    - ``seeds`` (default: 0 alone);
    - ``exclude``: patterns of the names of trials that are left out, such as ``'pvt_l*-seed2'``;
    - ``rule`` (default: ``'greater'``) and ``title``.

    Other names are its own.

    Args:
        path: The sweep's file.
        options: ``--cfg-options`` for every trial; its own win.
        seeds: The seeds, where they are not the file's.

    Raises:
        InputError: The file is not there or is no sweep, a config is not there, options do not fit it, two trials have
            one name, or a pattern excludes none.
    """
    config = load_config(path, needs=())
    if lacking := [key for key in ('configs', 'metric') if not config.get(key)]:
        raise InputError(f'{path} is no sweep: it lacks {" and ".join(lacking)}; a sweep sets {", ".join(SETTINGS)}')
    for key in config.keys() - set(SETTINGS):
        if near := difflib.get_close_matches(key, SETTINGS, n=1, cutoff=0.8):
            raise InputError(f'{path}: a sweep has no {key}; did you mean {near[0]}?')
    if config.get('rule', 'greater') not in ('greater', 'less'):
        raise InputError(f"{path}: rule is 'greater' or 'less', not {config.rule!r}")
    _check_types(path, config)
    trials = [
        Trial('-'.join([name, *names]), base, (*options, *own), seed, epochs, gpus)
        for name, base in _named_configs(path, config).items()
        for names, own in _combinations(path, config.get('options') or {})
        for epochs, gpus in [_length_and_gpus(path, base, (*options, *own))]
        for seed in seeds or config.get('seeds', (0,))
    ]
    names = [trial.name for trial in trials]
    for pattern in config.get('exclude', ()):
        if not fnmatch.filter(names, pattern):
            raise InputError(f'{path}: nothing is called {pattern}, which exclude names; there are {", ".join(names)}')
    kept = [trial for trial in trials if not any(fnmatch.fnmatch(trial.name, p) for p in config.get('exclude', ()))]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not kept:
        raise InputError(f'{path}: {f"two trials are called {twice[0]}" if twice else "every trial is excluded"}')
    name = Path(path).stem
    return Sweep(name, config.get('title', name), config.metric, config.get('rule', 'greater'), tuple(kept))


def _check_types(path: str, config: Config) -> None:
    configs = config.configs
    named = isinstance(configs, Mapping)
    are_paths = _is_list(list(configs.values()) if named else configs, str)
    if not are_paths or (not named and len({Path(base).stem for base in configs}) < len(configs)):
        raise InputError(f'{path}: configs is a list of paths of different names, or a dict of paths by name')
    for name in configs if named else ():
        _check_name(path, name)
    if not _is_list(config.get('seeds', [0]), int) or not config.get('seeds', [0]):
        raise InputError(f'{path}: seeds is a list of numbers, such as [0, 1, 2], not {config.seeds!r}')
    if not _is_list(config.get('exclude', []), str):
        raise InputError(f"{path}: exclude is a list of patterns, such as ['pvt_l*-seed2'], not {config.exclude!r}")


def _named_configs(path: str, config: Config) -> dict[str, str]:
    configs = config.configs
    if not isinstance(configs, Mapping):
        configs = {Path(base).stem: base for base in configs}
    return {name: os.path.relpath(Path(path).parent / base) for name, base in configs.items()}


def _combinations(path: str, options: Any) -> Iterator[tuple[list[str], list[str]]]:
    """Yields the names and the options of every combination."""
    axes = [axis for axis in (options if isinstance(options, (list, tuple)) else [options]) if axis != {}]
    for axis in axes:
        if not isinstance(axis, Mapping) or not all(_is_list(values, str) for values in axis.values()):
            raise InputError(
                f"{path}: options is a dict of lists by name: dict(slow=['optim_wrapper.optimizer.lr=1e-5'])"
            )
        for name in axis:
            _check_name(path, name)
    for chosen in itertools.product(*(axis.items() for axis in axes)):
        yield [name for name, _ in chosen], [value for _, values in chosen for value in values]


def _check_name(path: str, name: str) -> None:
    if not isinstance(name, str) or not re.fullmatch(r'[\w.+-]+', name) or name.startswith('.'):
        raise InputError(f'{path}: {name!r} names a part of trials, and folders: letters, digits and . _ + - alone')


def _is_list(values: Any, kind: type) -> bool:
    return isinstance(values, (list, tuple, range)) and all(isinstance(value, kind) for value in values)


class _OptionParser(argparse.ArgumentParser):
    def error(self, message: str):
        raise InputError(message)


def _length_and_gpus(path: str, config: str, options: Sequence[str]) -> tuple[int | None, float | None]:
    """Returns a trial's ``epochs`` and ``gpus`` by its config with options, which are thereby checked."""
    parser = _OptionParser()
    parser.add_argument('--cfg-options', nargs='+', action=CfgOptions, default={})
    try:
        parsed = parser.parse_args(['--cfg-options', *options] if options else []).cfg_options
        read = load_config(config, parsed)
    except InputError as error:
        raise InputError(f'{path}: {error}') from error
    batch = (read.get('train_dataloader') or {}).get('batch_size')
    base = (read.get('auto_scale_lr') or {}).get('base_batch_size')
    return (read.get('train_cfg') or {}).get('max_epochs'), base / batch if base and batch else None
