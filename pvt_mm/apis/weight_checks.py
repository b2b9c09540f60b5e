"""Checks of weights and checkpoints before a run starts."""

import itertools
import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_distributed
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import Tensor, nn

from pvt_mm.apis.config import as_list, settings_in
from pvt_mm.apis.launch import build_model
from pvt_mm.apis.ranks import on_each_machine, on_first_rank
from pvt_mm.checkpoint.formats import check_sizes, check_weights
from pvt_mm.checkpoint.integrity import assume_intact, identity
from pvt_mm.checkpoint.loading import AnyFormat, translate_all
from pvt_mm.checkpoint.reader import download_advice, parameters_of, read_checkpoint, read_file
from pvt_mm.utils.errors import CheckpointError, InputError
from pvt_mm.utils.text import shorten

LOAD_FROM_ADVICE = (
    'give a file with --weights PATH or --cfg-options load_from=PATH, or start from random weights with --weights none'
)


def check_init_weights(config: Config) -> None:
    """Raises an InputError if weights to initialize the model from are missing, or torchvision, where it has them."""
    settings = [(where, value) for where, value in settings_in(config.model, 'model') if where.endswith('.init_cfg')]
    for where, cfg in [(where, cfg) for where, value in settings for cfg in as_list(value)]:
        if not isinstance(cfg, dict):
            raise InputError(
                f'{where} is {cfg!r}: it must be a dict; write --cfg-options {where}.type=Pretrained '
                f'{where}.checkpoint=PATH'
            )
        checkpoint = cfg['checkpoint'] if cfg.get('type') == 'Pretrained' else ''
        hint = f'or start from random weights with --cfg-options {where}=None'
        if checkpoint.startswith('torchvision://') and not find_spec('torchvision'):
            raise InputError(f'{where} names {checkpoint}, and torchvision is not installed: pip install it, {hint}')
        if checkpoint and '://' not in checkpoint and not os.path.isfile(checkpoint):
            raise InputError(f'{where} names {checkpoint}, which does not exist: put weights there, {hint}')


def check_pretrained(model: nn.Module) -> None:
    """Checks that the files in ``init_cfg`` fit their modules, as MMEngine loads whatever fits without an error.

    Modules of this package that load strictly, such as PVT, check that themselves and are skipped.

    Raises:
        CheckpointError: A file cannot be read, or contains less than half of the parameters.
    """
    for module in model.modules():
        cfg = getattr(module, 'init_cfg', None)
        path = cfg.get('checkpoint', '') if isinstance(cfg, dict) else ''
        loads_itself = getattr(getattr(type(module), 'init_weights', None), '__module__', '').startswith('pvt_mm.')
        if not os.path.isfile(path) or loads_itself:
            continue
        prefix = f'{cfg["prefix"]}.' if cfg.get('prefix') else ''
        weights = {key.removeprefix(prefix): value for key, value in read_checkpoint(path).items()}
        target = module.state_dict()
        fitting = _fitting(weights, target)
        if len(fitting) < len(target) / 2:
            absent = [key for key in target if key not in fitting]
            raise CheckpointError(
                f'{path} has {len(fitting)} of {len(target)} parameters of {type(module).__name__}: no '
                f'{shorten(absent, 3)} of that shape; its keys are {shorten(weights, 3)}'
            )


def check_checkpoint(model: nn.Module, path: str, strict: bool) -> dict[str, Tensor]:
    """Returns the parameters in a checkpoint if they fit ``model``: all, or (not ``strict``) enough to start from.

    Enough are all of the backbone, or half of a model without one: a head may be of other classes.
    They are those that are loaded: of any format that a part of the model takes
    (:class:`pvt_mm.checkpoint.loading.AnyFormat`).

    Raises:
        CheckpointError: It cannot be read; or a part does not fit (named); or (not strict) too little does.
    """
    return check_content(model, read_file(path), path, strict)


def check_content(model: nn.Module, content: Any, path: str, strict: bool) -> dict[str, Tensor]:
    """Does the same for what has been read from ``path`` by :func:`~pvt_mm.checkpoint.reader.read_file`."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    read = _without_module(parameters_of(content, path))
    try:
        weights = translate_all(model, read)
    except CheckpointError as error:
        raise CheckpointError(f'{path}: {error}') from None
    _check_fit(model, weights, path, strict)
    return weights


def _without_module(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix('module.'): value for key, value in weights.items()}


def _check_fit(model: nn.Module, weights: dict[str, Tensor], path: str, strict: bool) -> None:
    target = model.state_dict()
    try:
        check_weights(weights, target)
    except CheckpointError:
        report = describe_fit(model, weights)
        fitting = _fitting(weights, target)
        if strict:
            raise CheckpointError(f'{path} does not match the model: {report}') from None
        if lacking := _lacking_to_start(model, fitting):
            raise CheckpointError(
                f'{path} does not match the model, which cannot start from it: {lacking}: {report}'
            ) from None
        absent = shorten([key for key in target if key not in fitting], 3)
        print_log(
            f'{path}: loaded {len(fitting)} of {len(target)} parameters; randomly initialised: {absent} ({report})',
            logger='current',
        )


def _lacking_to_start(model: nn.Module, fitting: list[str]) -> str:
    """Returns how much fits, if that is too little to start a training from, else ''."""
    names = [name for name, _ in model.named_parameters()]
    backbone = [name for name in names if 'backbone' in name.split('.')]
    needed, what = (backbone, 'the backbone') if backbone else (names, 'the model')
    found = len(set(needed) & set(fitting))
    enough = found == len(needed) if backbone else found >= len(needed) / 2
    return '' if enough else f'it has {found} of {len(needed)} parameters of {what}'


def describe_fit(model: nn.Module, weights: dict[str, Tensor]) -> str:
    """Returns which parts of a model weights fit, and what is wrong with the others, in one line.

    For example ``backbone and neck fit; bbox_head.retina_cls: 80 classes, the model has 3``.
    """
    target = model.state_dict()
    fitting = set(_fitting(weights, target))
    keys = {part: list(names) for part, names in itertools.groupby(sorted(target), _part)}
    faults = _faults_of_sizes(model, weights)
    for part, names in keys.items():
        others = [key for key in weights if _part(key) == part]
        if not others:
            faults[part] = 'absent'
        elif fitting.isdisjoint(names) and set(others).isdisjoint(names):
            faults[part] = f'of another kind, with {shorten(others, 2)}'
    lines: dict[str, str] = {}
    for key in target:
        if key not in fitting and not any(f'{key}.'.startswith(f'{name}.') for name in faults):
            name = key.rpartition('.')[0] or key
            lines.setdefault(name, _misfit(model, name, target[key], weights.get(key)))
    unknown = {part: list(names) for part, names in itertools.groupby(sorted(set(weights) - set(target)), _part)}
    lines |= {f'{part}, unknown': shorten(names, 2) for part, names in unknown.items() if part not in faults}
    whole = [
        part for part in dict.fromkeys(map(_part, target)) if fitting.issuperset(keys[part]) and part not in unknown
    ]
    text = [f'{" and ".join([", ".join(whole[:-1])] * (len(whole) > 1) + whole[-1:])} fit{"s" * (len(whole) == 1)}']
    return '; '.join(text * bool(whole) + [shorten(f'{name}: {fault}' for name, fault in (faults | lines).items())])


def _part(key: str) -> str:
    return key.split('.')[0]


def _faults_of_sizes(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, str]:
    """Returns what :func:`check_sizes` finds wrong with each PVT or PVTv2 of a model, by its name."""
    faults = {}
    for name, module in model.named_modules():
        prefix = f'{name}.' if name else ''
        if isinstance(module, AnyFormat):
            inner = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
            try:
                check_sizes(inner, module.state_dict())
            except CheckpointError as error:
                faults[name] = str(error)
    return faults


def _misfit(model: nn.Module, name: str, wanted: Tensor, found: Tensor | None) -> str:
    """Returns why a parameter of the module ``name`` does not fit, for the last layer of a head in classes."""
    if found is None:
        return 'missing'
    if found.shape == wanted.shape:
        return f'{found.dtype}, {found.layout}, {found.device}'
    shapes = f'{tuple(found.shape)}, not {tuple(wanted.shape)}'
    if found.shape[1:] != wanted.shape[1:]:
        return shapes
    owners = (name.rsplit('.', depth)[0] for depth in range(name.count('.') + 1))
    counts = (getattr(model.get_submodule(owner), 'num_classes', None) for owner in owners)
    classes = next((count for count in counts if isinstance(count, int)), None)
    theirs = classes and _classes_of(found.shape[0], wanted.shape[0], classes)
    return f'{theirs} classes, the model has {classes}' if theirs else shapes


def _classes_of(found: int, wanted: int, classes: int) -> int | None:
    """Returns the classes for which a layer has ``found`` outputs, where it has ``wanted`` for ``classes``."""
    if wanted == classes + 1:  # with one for the background
        return found - 1
    each, rest = divmod(wanted, classes)  # one for each anchor, or each side of the box
    return None if rest or found % each else found // each


def check_start(model: nn.Module, path: str) -> None:
    """Checks weights to start from as :func:`check_checkpoint` does, not strictly, on the first rank.

    The others wait, and need not verify the file when they load it.

    Raises:
        CheckpointError: See there.
    """
    with download_advice(LOAD_FROM_ADVICE):
        _check_of_ranks(path, lambda: check_checkpoint(model, path, strict=False))


def check_resumed(model: nn.Module, path: str) -> None:
    """Checks on the first rank that a checkpoint to resume from has the model's parameters, in our format.

    Those that have to be translated or resampled would not fit the optimizer's state.

    Raises:
        CheckpointError: It cannot be read, or does not match the model.
    """
    _check_of_ranks(path, lambda: _check_fit(model, _without_module(read_checkpoint(path)), path, strict=True))


def check_tested_checkpoint(config: Config, path: str) -> None:
    """Checks that a checkpoint has all parameters of a config's model, which the first rank builds for it.

    Building the runner would take longer, and log the whole config before the error.

    Raises:
        InputError: The model cannot be built, or the checkpoint cannot be read or does not fit.
    """
    _check_of_ranks(path, lambda: check_checkpoint(build_model(config), path, strict=True))


def _check_of_ranks(path: str, check: Callable[[], object]) -> None:
    if '://' not in path:
        assume_intact(path, on_first_rank(_identity_of_checked, path, check))
        return
    if not is_distributed():  # on GPUs MMEngine's runner connects the ranks later, so that the reader could not wait
        on_each_machine(read_file, path)
    check()  # on all ranks: the first one of each machine downloads the file, and the others wait


def _identity_of_checked(path: str, check: Callable[[], object]) -> tuple[int, ...]:
    check()
    return identity(path)


def _fitting(weights: dict[str, Tensor], target: dict[str, Tensor]) -> list[str]:
    """Returns the keys of ``target`` that ``weights`` has in the same shape."""
    return [key for key in target if key in weights and weights[key].shape == target[key].shape]


def check_resumable(path: str) -> None:
    """Raises a CheckpointError if a checkpoint cannot be read, or lacks what resuming a run needs besides weights."""
    content = read_file(path)
    missing = [key for key in ('meta', 'message_hub', 'optimizer') if key not in content]
    if missing:
        raise CheckpointError(
            f'--resume: {path} has no {shorten(missing)}, so no run can resume from it; to start a new run from its '
            f'weights, use --cfg-options load_from={path}'
        )
