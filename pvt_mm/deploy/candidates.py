"""What the heads of detectors have in common: candidates of each level, suppressed, in pixels of the original image.

Sizes are constant: an image has as many candidates as it can have, and those that it lacks have score 0.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pvt_mm.deploy.operators import nms
from pvt_mm.utils.errors import InputError


class Candidates(NamedTuple):
    """Boxes of B images. Those with score 0 do not count."""

    boxes: Tensor  # (B, K, 4), x1, y1, x2, y2
    scores: Tensor  # (B, K)
    labels: Tensor  # (B, K)


def gather(x: Tensor, indices: Tensor) -> Tensor:
    """Returns the rows (B, K, ...) of x (B, N, ...) at indices (B, K)."""
    rows = indices.reshape(*indices.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:])
    return x.gather(1, rows)


def best(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns the ``count`` best of scores (B, N), and their indices; scores of -inf where there are fewer.

    An exported model needs a constant ``count``, whatever N is.
    """
    values, indices = F.pad(scores, (0, count), value=-torch.inf).topk(count)
    return values, indices.clamp(max=scores.shape[1] - 1)


def clip(boxes: Tensor, shape: Tensor) -> Tensor:
    """Returns boxes (B, K, 4) clipped to images of ``shape`` (B, 2), height and width."""
    limits = shape.flip(1).repeat(1, 2)[:, None].to(boxes)  # (B, 1, 4): width, height, width, height
    return torch.minimum(boxes.clamp(min=0), limits)


def suppress(found: Candidates, settings: Mapping, count: int, min_size: float = -1) -> Candidates:
    """Returns the best ``count`` boxes (B, count) after non-maximum suppression within each label, best first.

    Args:
        found: The candidates.
        settings: ``nms`` of a config's ``test_cfg``.
        count: Maximum number of boxes an image.
        min_size: Boxes whose sides are not longer are dropped, unless it is negative: ``min_bbox_size``.

    Raises:
        InputError: The settings are not those of plain non-maximum suppression.
    """
    iou_threshold = _iou_threshold(settings)
    boxes, scores, labels = found
    if min_size >= 0:
        sides = boxes[..., 2:] - boxes[..., :2]
        scores = torch.where((sides > min_size).all(2), scores, 0)
    # MMCV moves the boxes of each label to a place of their own, which the largest coordinate of all of them gives.
    apart = boxes
    if not settings.get('class_agnostic', False):
        largest = torch.where(scores[..., None] > 0, boxes, 0).amax((1, 2))  # (B,)
        apart = boxes + (labels.to(boxes) * (largest[:, None] + 1))[..., None]
    kept = nms(apart, scores, iou_threshold, count)  # (B, count)
    exists, kept = kept >= 0, kept.clamp(min=0)
    scores = torch.where(exists, gather(scores, kept), 0)
    boxes = torch.where(exists[..., None], gather(boxes, kept), 0)
    return Candidates(boxes, scores, torch.where(exists, gather(labels, kept), -1))


def _iou_threshold(settings: Mapping) -> float:
    kind = settings.get('type', 'nms')
    if kind != 'nms':
        raise InputError(f'test_cfg.nms.type is {kind}, which ONNX has no operator for: set it to nms')
    return float(settings.get('iou_threshold', settings.get('iou_thr', 0.5)))


def to_original(boxes: Tensor, img_shape: Tensor, ori_shape: Tensor) -> Tensor:
    """Returns boxes (B, K, 4) of images of ``img_shape`` (B, 2) in pixels of the original ones, of ``ori_shape``."""
    scale = 1 / (img_shape.double() / ori_shape.double())  # (B, 2), rounded as MMDetection's
    return boxes * scale.float().flip(1).repeat(1, 2)[:, None]


def drop_missing(found: Candidates) -> Candidates:
    """Returns the candidates (B, N) without those that no image of the batch has; at least one."""
    count = (found.scores > 0).sum(1).amax(0).clamp(min=1).item()
    torch._check(count >= 1)
    torch._check(count <= found.scores.shape[1])
    return Candidates(found.boxes[:, :count], found.scores[:, :count], found.labels[:, :count])
