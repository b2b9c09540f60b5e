"""Checks of weights and checkpoints before a run starts."""

import os
from importlib.util import find_spec

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import Tensor, nn

from pvt_mm.apis.config import as_list, settings_in
from pvt_mm.apis.ranks import on_first_rank
from pvt_mm.checkpoint.formats import check_weights
from pvt_mm.checkpoint.integrity import assume_intact, identity
from pvt_mm.checkpoint.reader import read_checkpoint, read_file
from pvt_mm.utils.errors import CheckpointError, InputError
from pvt_mm.utils.text import shorten


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
                f'{path} fills {len(fitting)} of {len(target)} parameters of {type(module).__name__}: it has no '
                f'{shorten(absent, 3)} of that shape; its keys are {shorten(weights, 3)}'
            )


def check_checkpoint(model: nn.Module, path: str, strict: bool) -> dict[str, Tensor]:
    """Returns the parameters in a checkpoint if they fit ``model``: all of them, or (not ``strict``) at least one.

    Raises:
        CheckpointError: It cannot be read; or a key is missing, unknown or misshapen; or (not strict) nothing fits.
    """
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    weights = {key.removeprefix('module.'): value for key, value in read_checkpoint(path).items()}
    target = model.state_dict()
    try:
        check_weights(weights, target)
    except CheckpointError as error:
        hint = 'tools/convert_checkpoint.py turns weights of other PVT implementations into ours'
        fitting = _fitting(weights, target)
        if strict:
            raise CheckpointError(f'{path} is of another model: {error}; {hint}') from None
        if not fitting:
            raise CheckpointError(f'{path} has nothing for this model: {error}; {hint}') from None
        print_log(f'{path} fills {len(fitting)} of {len(target)} parameters: {error}', logger='current')
    return weights


def check_checkpoint_of_ranks(model: nn.Module, path: str, strict: bool) -> None:
    """Runs :func:`check_checkpoint` on the first rank; the others wait, and need not verify the file when they load it.

    Raises:
        CheckpointError: See there.
    """
    if '://' in path:  # the first rank of each machine downloads it, for which all must ask
        check_checkpoint(model, path, strict)
        return
    assume_intact(path, on_first_rank(_identity_of_checked, model, path, strict))


def _identity_of_checked(model: nn.Module, path: str, strict: bool) -> tuple[int, ...]:
    check_checkpoint(model, path, strict)
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
