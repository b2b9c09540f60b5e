"""Strict loading of a PVT or a classifier from a checkpoint of any format."""

from mmengine.logging import print_log
from torch import Tensor, nn

from pvt_mm.checkpoint.formats import backbone_weights, check_weights, fit_weights, head_weights
from pvt_mm.checkpoint.reader import read_checkpoint
from pvt_mm.utils.errors import CheckpointError


def load_pretrained(
    model: nn.Module,
    checkpoint: str,
    prefix: str | None = None,
    pretrain_img_size: int | tuple[int, int] | None = None,
    map_location: str = 'cpu',
) -> None:
    """Loads the PVT in a checkpoint into ``model``: every parameter of it, or none.

    Position embeddings of another grid are resampled bilinearly. Where ``model`` takes another number of channels than
    3, its patch embedding gets the mean of the three, scaled by 3 / channels so that a gray image keeps its output. A
    classifier's head, the class token where ``model`` has none, and the stages that it does not build are dropped; the
    log says so.

    Args:
        model: The backbone, a :class:`~pvt_mm.models.PVT`.
        checkpoint: A path or URL, of any format of :mod:`pvt_mm.checkpoint.formats`.
        prefix: What the keys of the backbone begin with. Needed only where the file holds more than one PVT.
        pretrain_img_size: Size in pixels of the images that the position embeddings were trained on, a side or (H, W).
            Needed only where they are neither square nor of the grid of ``model``, or could be both.
        map_location: The device to read to.

    Raises:
        CheckpointError: The file cannot be read, or a key is missing, unknown or of another shape; they are listed.
    """
    weights, _, notes = _read_weights(checkpoint, map_location, model, {}, prefix, pretrain_img_size)
    model.load_state_dict(weights)
    print_log('; '.join([f'loaded all {len(weights)} parameters of PVT from {checkpoint}', *notes]), logger='current')


def load_classifier(backbone: nn.Module, head: nn.Linear, checkpoint: str, map_location: str = 'cpu') -> None:
    """Loads the classifier in a checkpoint, of any format, into its backbone and head: all of it, or nothing.

    The backbone has a class token; the head goes from the token's feature to the scores.

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
    grids = [tuple(table.shape[1:3]) for name, table in target.items() if name.endswith('.pos_embed.table')]
    try:
        scores = head_weights(state_dict) if head else {}
        check_weights(scores, head)
        weights, notes = fit_weights(backbone_weights(state_dict, prefix, pretrain_img_size, grids), target)
        check_weights(weights, target)
    except CheckpointError as error:
        raise CheckpointError(f'{checkpoint}: {error}') from None
    return weights, scores, notes
