"""Two-stage detectors of MMDetection (Faster, Mask and Cascade R-CNN) as exportable modules."""

import torch
from torch import Tensor, nn

from pvt_mm.deploy.candidates import Candidates, clip, drop_missing, suppress, to_original
from pvt_mm.deploy.dense import predict_levels
from pvt_mm.deploy.operators import paste, roi_align


class TwoStage(nn.Module):
    """A detector with proposals, from images to boxes, and to masks if it has a mask head.

    Shape:
        - Input: ``image`` (B, C, H, W), ``img_shape`` (B, 2) and ``ori_shape`` (B, 2), see :mod:`pvt_mm.deploy.graphs`.
        - Output: ``boxes`` (B, N, 4), ``scores`` (B, N), ``labels`` (B, N), ``masks`` (B, N, H, W) of the largest
          original height and width.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        has_masks = model.roi_head.with_mask
        self.task = 'instance_segmentation' if has_masks else 'detection'
        self.outputs = ('boxes', 'scores', 'labels', *(['masks'] if has_masks else []))

    @staticmethod
    def fits(model: nn.Module) -> bool:
        """Returns whether a model is of this kind."""
        return hasattr(getattr(model, 'roi_head', None), 'bbox_roi_extractor') and hasattr(model, 'rpn_head')

    def forward(self, image: Tensor, img_shape: Tensor, ori_shape: Tensor) -> tuple[Tensor, ...]:
        maps = self.model.extract_feat(image)
        found = self.find_boxes(maps, self.propose(maps, img_shape), img_shape)
        boxes = to_original(found.boxes, img_shape, ori_shape)
        if 'masks' not in self.outputs:
            return boxes, found.scores, found.labels
        return boxes, found.scores, found.labels, self.find_masks(maps, found, boxes, ori_shape)

    def propose(self, maps: tuple[Tensor, ...], img_shape: Tensor) -> Candidates:
        """Returns the proposals of the RPN, suppressed within their level."""
        head, settings = self.model.rpn_head, self.model.rpn_head.test_cfg
        levels = predict_levels(head, maps, settings, img_shape)
        levels = [level._replace(labels=torch.full_like(level.labels, i)) for i, level in enumerate(levels)]
        found = Candidates(*(torch.cat(parts, 1) for parts in zip(*levels, strict=True)))
        return suppress(found, settings.nms, settings.max_per_img, settings.get('min_bbox_size', -1))

    def find_boxes(self, maps: tuple[Tensor, ...], proposals: Candidates, img_shape: Tensor) -> Candidates:
        """Returns the boxes of all stages, in pixels of the resized image."""
        head, settings = self.model.roi_head, self.model.roi_head.test_cfg
        heads, boxes, total = as_list(head.bbox_head), proposals.boxes, 0
        for bbox_head, extractor in zip(heads, as_list(head.bbox_roi_extractor), strict=True):
            rois = to_rois(boxes)
            logits, deltas = bbox_head(extract(extractor, maps, rois))
            logits, deltas = (x.unflatten(0, boxes.shape[:2]) for x in (logits, deltas))
            total = total + logits
            # (B, K, classes or 1, 4)
            refined = decode(bbox_head, boxes, deltas, img_shape)
            if bbox_head is not heads[-1]:
                best = logits[..., :-1].argmax(2)[:, :, None, None].expand(-1, -1, -1, 4) * (refined.shape[2] > 1)
                boxes = refined.gather(2, best)[:, :, 0]
        scores = (total / len(heads)).softmax(2)[..., :-1]  # (B, K, classes)
        scores = torch.where((scores > settings.score_thr) & (proposals.scores > 0)[..., None], scores, 0)
        labels = torch.arange(scores.shape[2], device=scores.device).expand_as(scores)
        refined = refined.expand(-1, -1, scores.shape[2], -1)
        pairs = Candidates(refined.flatten(1, 2), scores.flatten(1), labels.flatten(1))
        return drop_missing(suppress(pairs, settings.nms, settings.max_per_img))

    def find_masks(self, maps: tuple[Tensor, ...], found: Candidates, boxes: Tensor, ori_shape: Tensor) -> Tensor:
        """Returns the masks (B, N, H, W) of boxes, which are given in pixels of the original image too."""
        head = self.model.roi_head
        rois, labels, total = to_rois(found.boxes), found.labels.flatten().clamp(min=0), 0
        mask_heads = as_list(head.mask_head)
        for mask_head, extractor in zip(mask_heads, as_list(head.mask_roi_extractor), strict=True):
            total = total + mask_head(extract(extractor, maps, rois)).sigmoid()  # (B * N, classes, h, w)
        masks = total / len(mask_heads)
        if not mask_heads[-1].class_agnostic:
            masks = masks.gather(1, labels[:, None, None, None].expand(-1, 1, *masks.shape[2:]))
        height, width = (side.item() for side in ori_shape.amax(0))
        torch._check(height >= 1)
        torch._check(width >= 1)
        x1, y1, x2, y2 = boxes.flatten(0, 1).unbind(1)
        rows, columns = interpolation(y1, y2, masks.shape[2], height), interpolation(x1, x2, masks.shape[3], width)
        pasted = paste(masks[:, 0], rows, columns, head.test_cfg.mask_thr_binary)  # (B * N, H, W)
        return pasted.unflatten(0, boxes.shape[:2])


def as_list(parts: nn.Module) -> list[nn.Module]:
    """Returns the stages of a cascade, or the only one."""
    return list(parts) if isinstance(parts, nn.ModuleList) else [parts]


def to_rois(boxes: Tensor) -> Tensor:
    """Returns boxes (B, K, 4) with the index of their image first: (B * K, 5)."""
    images = torch.arange(boxes.shape[0], device=boxes.device).to(boxes)[:, None, None].expand(-1, boxes.shape[1], 1)
    return torch.cat([images, boxes], 2).flatten(0, 1)


def extract(extractor: nn.Module, maps: tuple[Tensor, ...], rois: Tensor) -> Tensor:
    """Returns the features (R, C, size, size) of regions (R, 5), as MMDetection's ``SingleRoIExtractor``."""
    maps = list(maps[: extractor.num_inputs])
    levels, layer = extractor.map_roi_levels(rois, len(maps)), extractor.roi_layers[0]
    scales = [float(layer.spatial_scale) for layer in extractor.roi_layers]
    return roi_align(maps, rois, levels, scales, layer.output_size[0], layer.sampling_ratio)


def decode(head: nn.Module, boxes: Tensor, deltas: Tensor, img_shape: Tensor) -> Tensor:
    """Returns the boxes (B, K, classes or 1, 4) that a head predicts from regions (B, K, 4), clipped to the image."""
    deltas = deltas.unflatten(2, (-1, 4))
    regions = boxes[:, :, None].expand_as(deltas)
    refined = head.bbox_coder.decode(regions.flatten(0, 2), deltas.flatten(0, 2))
    return clip(refined.unflatten(0, deltas.shape[:3]).flatten(1, 2), img_shape).unflatten(1, deltas.shape[1:3])


def interpolation(start: Tensor, end: Tensor, cells: int, pixels: int) -> Tensor:
    """Returns the weights (N, pixels, cells) that interpolate cells from ``start`` to ``end`` (N,) at the pixels.

    They are those of ``torch.nn.functional.grid_sample`` along one side, with zeros outside.
    """
    centres = torch.arange(pixels, device=start.device) + 0.5
    places = (centres - start[:, None]) / (end - start)[:, None]  # (N, pixels), as fractions of the box
    places = torch.where(places.isinf(), 0.5, places) * cells - 0.5  # as MMDetection treats boxes without a side
    return (1 - (places[..., None] - torch.arange(cells, device=start.device)).abs()).clamp(min=0)
