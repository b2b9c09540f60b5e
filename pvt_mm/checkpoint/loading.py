"""Strict loading of backbones and classifiers from checkpoints of any format, alone or as a part of another model."""

from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from pvt_mm.checkpoint.formats import (
    backbone_weights,
    check_sizes,
    check_weights,
    fit_weights,
    head_weights,
    known_weights,
    locate,
)
from pvt_mm.checkpoint.reader import read_checkpoint
from pvt_mm.utils.errors import CheckpointError


def load_pretrained(
    model: nn.Module,
    checkpoint: str,
    prefix: str | None = None,
    pretrain_img_size: int | tuple[int, int] | None = None,
    map_location: str = 'cpu',
) -> None:
    """Loads the PVT or PVTv2 in a checkpoint into ``model``: every parameter of it, or none.

    A PVT's position embeddings of another grid are resampled bilinearly. Where ``model`` takes another number of
    channels than 3, its patch embedding gets the mean of the three, scaled by 3 / channels so that a gray image keeps
    its output. A classifier's head, the class token where ``model`` has none, and the stages that it does not build are
    dropped; the log says so.

    Args:
        model: The backbone, a :class:`~pvt_mm.models.PVT` or :class:`~pvt_mm.models.PVTv2`.
        checkpoint: A path or URL, of any format of :mod:`pvt_mm.checkpoint.formats`.
        prefix: What the keys of the backbone begin with. Needed only where the file holds more than one.
        pretrain_img_size: Size in pixels of the images that the position embeddings were trained on, a side or (H, W).
            Needed only where they are neither square nor of the grid of ``model``, or could be both. A PVTv2 has none.
        map_location: The device to read to.

    Raises:
        CheckpointError: The file cannot be read, holds the other of the two, or a key is missing, unknown or of another
            shape; they are listed.
    """
    weights, _, notes = _read_weights(checkpoint, map_location, model, {}, prefix, pretrain_img_size)
    model.load_state_dict(weights)
    what = f'{len(weights)} parameters of {type(model).__name__}'
    print_log('; '.join([f'loaded all {what} from {checkpoint}', *notes]), logger='current')


def load_classifier(backbone: nn.Module, head: nn.Linear, checkpoint: str, map_location: str = 'cpu') -> None:
    """Loads the classifier in a checkpoint, of any format, into its backbone and head: all of it, or nothing.

    The backbone is a PVT with a class token or a PVTv2; the head goes from its feature to the scores.

    Raises:
        CheckpointError: The file cannot be read, has no head, or a key is missing, unknown or of another shape.
    """
    wanted = {f'head.fc.{name}': value for name, value in head.state_dict().items()}
    weights, scores, notes = _read_weights(checkpoint, map_location, backbone, wanted)
    backbone.load_state_dict(weights)
    head.load_state_dict({name.removeprefix('head.fc.'): value for name, value in scores.items()})
    print_log('; '.join([f'loaded the whole classifier from {checkpoint}', *notes]), logger='current')


def _read_weights(
    checkpoint: str,
    map_location: str,
    model: nn.Module,
    head: dict[str, Tensor],
    prefix: str | None = None,
    pretrain_img_size: int | tuple[int, int] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
    """Returns the parameters of ``model`` and of ``head`` (by name) in a checkpoint, and what was changed to fit."""
    state_dict, target = read_checkpoint(checkpoint, map_location), model.state_dict()
    try:
        weights = backbone_weights(state_dict, prefix, pretrain_img_size, target)
        check_sizes(weights, target)
        scores = head_weights(state_dict) if head else {}
        check_weights(scores, head)
        weights, notes = fit_weights(weights, target)
        check_weights(weights, target)
    except CheckpointError as error:
        raise CheckpointError(f'{checkpoint}: {error}') from None
    return weights, scores, notes


class AnyFormat(nn.Module):
    """A module that takes its parameters in a state dict of any known format, however that is loaded.

    PyTorch's ``load_state_dict`` and MMEngine's, which ``load_from``, ``load_checkpoint`` and the inferencers call, ask
    each module to load its part. So a detector's checkpoint loads with its neck and head, whoever wrote it. What fits
    already is left as it is, and so is what has no counterpart, which PyTorch or MMEngine reports.
    """

    def translate(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Replaces this module's entries of ``state_dict``, which begin with ``prefix``, by ours that fit the module.

        Raises:
            CheckpointError: They are of another model of a known format.
        """
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        self.translate(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def translate_all(model: nn.Module, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the state dict that loading ``state_dict`` into ``model`` uses: see :class:`AnyFormat`."""
    state_dict = dict(state_dict)
    for name, module in model.named_modules():
        if isinstance(module, AnyFormat):
            module.translate(state_dict, f'{name}.' if name else '')
    return state_dict


def translate_backbone(model: nn.Module, state_dict: dict[str, Tensor], prefix: str) -> None:
    """Replaces the PVT or PVTv2 at ``prefix`` in a state dict by ours, with the grids and channels of ``model``.

    It may be incomplete. Other keys stay, and so do parameters of our format that fit, bit for bit.

    Raises:
        CheckpointError: It is of another arch or version.
    """
    weights, keys = _translated(model, state_dict, prefix)
    _replace(state_dict, keys, {f'{prefix}{name}': value for name, value in weights.items()})


def _replace(state_dict: dict[str, Tensor], keys: list[str], weights: dict[str, Tensor]) -> None:
    for key in keys:
        if key not in weights:
            state_dict.pop(key, None)
    state_dict.update(weights)


def translate_classifier(backbone: nn.Module, state_dict: dict[str, Tensor], prefix: str) -> None:
    """Replaces a classifier of another format at ``prefix`` in a state dict by one of ours.

    A classifier of our format is left as it is.

    Raises:
        CheckpointError: The backbone is of another arch or version.
    """
    for before, (version, layout) in locate(state_dict, prefix, backbone.state_dict()).items():
        theirs = version.classifiers.get(layout)
        if theirs and layout != 'pvt_mm' and before == prefix + theirs[0]:
            weights, keys = _translated(backbone, state_dict, before)
            names = {f'{prefix}{theirs[1]}{kind}': f'{prefix}head.fc.{kind}' for kind in ('weight', 'bias')}
            scores = {ours: state_dict[name] for name, ours in names.items() if name in state_dict}
            renamed = {f'{prefix}backbone.{name}': value for name, value in weights.items()}
            _replace(state_dict, [*keys, *(key for key in names if key in state_dict)], {**renamed, **scores})


def _translated(model: nn.Module, state_dict: dict[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], list[str]]:
    """Returns the backbone at ``prefix`` in our format, as far as it is there, fitted to ``model``, and its keys."""
    target = model.state_dict()
    inner = {key: value for key, value in state_dict.items() if key.startswith(prefix)}
    try:
        weights, keys = known_weights(inner, prefix, target)
    except CheckpointError as error:
        raise CheckpointError(f'the backbone in it does not fit: {error}') from None
    weights, notes = fit_weights(weights, target)
    if notes:
        print_log('; '.join(notes), logger='current')
    return weights, keys
