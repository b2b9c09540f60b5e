"""One-stage detectors of MMDetection, and the proposals of two-stage ones, as exportable modules."""

from typing import Any

import torch
from torch import Tensor, nn

from pvt_mm.deploy.candidates import Candidates, best, clip, drop_missing, gather, suppress, to_original


class OneStage(nn.Module):
    """A detector such as RetinaNet, FCOS, ATSS or GFL, from images to boxes.

    Shape:
        - Input: ``image`` (B, C, H, W), ``img_shape`` (B, 2) and ``ori_shape`` (B, 2), see :mod:`pvt_mm.deploy.graphs`.
        - Output: ``boxes`` (B, N, 4), ``scores`` (B, N), ``labels`` (B, N).
    """

    task = 'detection'
    outputs = ('boxes', 'scores', 'labels')

    @staticmethod
    def fits(model: nn.Module) -> bool:
        """Returns whether a model is of this kind."""
        head = getattr(model, 'bbox_head', None)
        predict = getattr(type(head), '_predict_by_feat_single', None)  # others', such as PAA's, vote or score again
        names = ('BaseDenseHead.', 'GFLHead.')
        return hasattr(head, 'prior_generator') and getattr(predict, '__qualname__', '').startswith(names)

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, img_shape: Tensor, ori_shape: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        head, settings = self.model.bbox_head, self.model.test_cfg
        levels = predict_levels(head, self.model.extract_feat(image), settings, img_shape)
        found = Candidates(*(torch.cat(parts, 1) for parts in zip(*levels, strict=True)))
        found = found._replace(boxes=to_original(found.boxes, img_shape, ori_shape))
        found = suppress(found, settings.nms, settings.max_per_img, settings.get('min_bbox_size', -1))
        return drop_missing(found)


def predict_levels(head: nn.Module, maps: tuple[Tensor, ...], settings: dict, img_shape: Tensor) -> list[Candidates]:
    """Returns the best candidates of each level of a dense head, at most ``nms_pre`` an image."""
    scores, boxes, *factors = head(maps)  # a map for each level
    priors = [grid_priors(head.prior_generator, i, x) for i, x in enumerate(scores)]
    strides = head.prior_generator.strides
    factors = factors[0] if factors else [None] * len(scores)
    return [
        _level(head, settings, img_shape, stride, *parts)
        for stride, *parts in zip(strides, scores, boxes, factors, priors, strict=True)
    ]


def grid_priors(generator: Any, level: int, x: Tensor) -> Tensor:
    """Returns the anchors (H * W * A, 4) of a level's map x (..., H, W), or its points (H * W, 2), row by row.

    MMDetection's own have a branch for maps of one row or column, which would be exported for one size only.
    """
    H, W = x.shape[-2:]
    offset = getattr(generator, 'offset', 0)
    columns, rows = (
        (torch.arange(count, device=x.device).to(x) + offset) * stride
        for count, stride in zip((W, H), generator.strides[level], strict=True)
    )
    places = torch.stack([columns[None].expand(H, W), rows[:, None].expand(H, W)], 2)  # (H, W, 2)
    if not hasattr(generator, 'base_anchors'):
        return places.reshape(-1, 2)
    return (places.repeat(1, 1, 2)[:, :, None] + generator.base_anchors[level].to(x)).reshape(-1, 4)


def _level(
    head: nn.Module,
    settings: dict,
    img_shape: Tensor,
    stride: tuple[int, int],
    scores: Tensor,
    boxes: Tensor,
    factor: Tensor | None,
    priors: Tensor,
) -> Candidates:
    logits = _tokens(head, scores)  # (B, N, classes)
    if not head.use_sigmoid_cls:
        logits = logits.softmax(2)[..., :-1]
    classes, count = logits.shape[2], settings.get('nms_pre', -1)
    if count > 0:
        # The best pairs of prior and class are among the priors whose best class is best.
        values, kept = best(logits.amax(2), count)
        logits = torch.where(values[..., None] == -torch.inf, -torch.inf, gather(logits, kept))  # (B, count, classes)
        values, pairs = logits.flatten(1).topk(count)
        kept, labels = kept.gather(1, pairs // classes), pairs % classes
    else:
        values = logits.flatten(1)
        pairs = torch.arange(values.shape[1], device=values.device).expand(values.shape[0], -1)
        kept, labels = pairs // classes, pairs % classes
    scores = values.sigmoid() if head.use_sigmoid_cls else values.clamp(min=0)
    scores = torch.where(scores > settings.get('score_thr', 0), scores, 0)
    if factor is not None:
        scores = scores * gather(_tokens(head, factor), kept)[..., 0].sigmoid()
    boxes = _decode(head, stride, gather(_tokens(head, boxes), kept), priors[kept])
    return Candidates(clip(boxes, img_shape), scores, labels)


def _tokens(head: nn.Module, x: Tensor) -> Tensor:
    """Returns a map (B, A * channels, H, W), of A priors a place, as (B, H * W * A, channels)."""
    channels = x.shape[1] // head.num_base_priors
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, channels)


def _decode(head: nn.Module, stride: tuple[int, int], boxes: Tensor, priors: Tensor) -> Tensor:
    """Returns boxes (B, K, 4) from what a head predicts for priors (B, K, 4), or (B, K, 2) of a point."""
    flat = boxes.flatten(0, 1), priors.flatten(0, 1)
    if hasattr(head, 'integral'):  # GFL predicts distributions of distances from the centre
        distances, centres = head.integral(flat[0]) * stride[0], head.anchor_center(flat[1])
        return head.bbox_coder.decode(centres, distances).unflatten(0, boxes.shape[:2])
    return head.bbox_coder.decode(flat[1], flat[0]).unflatten(0, boxes.shape[:2])
