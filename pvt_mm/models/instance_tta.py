"""Test-time augmentation for Mask R-CNN; MMDetection's own has no masks."""

from typing import Any

import torch
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.test_time_augs import DetTTAModel
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi, bbox_flip
from mmengine.structures import InstanceData
from torch import Tensor

from pvt_mm.registry import MODELS

# The axes of a map (..., H, W) that each flip direction reverses.
FLIP_AXES = {'horizontal': (-1,), 'vertical': (-2,), 'diagonal': (-2, -1)}


@MODELS.register_module()
class InstanceTTAModel(DetTTAModel):
    """Averages the boxes and masks of a Mask R-CNN over scaled and flipped views of an image.

    The boxes of all views are mapped to the original image and merged by NMS, as in ``DetTTAModel``. The mask head then
    predicts a mask for each merged box in each view, and the mean of their probabilities is the result. The feature
    maps of all views stay in memory until then: about 0.6 GB an image for six views of COCO's sizes. It takes the
    arguments of ``DetTTAModel``: ``module``, the detector's config, and ``tta_cfg=dict(nms=..., max_per_img=...)``.

    Raises:
        ValueError: The detector has no single-stage RoI head with masks.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        roi_head = getattr(self.module, 'roi_head', None)
        if not isinstance(roi_head, StandardRoIHead) or not roi_head.with_mask:
            raise ValueError(f'{type(self).__name__} is for a Mask R-CNN, not for a {type(self.module).__name__}')

    def test_step(self, data: dict[str, list]) -> list[DetDataSample]:
        """Predicts a batch: ``inputs`` and ``data_samples``, each a list over the views of a list over the images.

        Returns:
            A sample for each image; its ``pred_instances`` has ``bboxes``, ``scores``, ``labels`` and ``masks`` at the
            image's original size.
        """
        module = self.module
        views = [dict(zip(data, view, strict=True)) for view in zip(*data.values(), strict=True)]
        features, samples = zip(*(self._predict_boxes(view) for view in views), strict=True)
        merged = self.merge_preds(list(zip(*samples, strict=True)))
        instances = [sample.pred_instances for sample in merged]
        masks = map(self._predict_masks, features, samples, [instances] * len(views))
        probabilities = sum(masks, torch.zeros(())) / len(views)
        metas = [dict(ori_shape=sample.ori_shape, scale_factor=(1.0, 1.0)) for sample in merged]
        logits = probabilities.logit().split([len(boxes) for boxes in instances])  # the head takes the sigmoid
        head, cfg = module.roi_head.mask_head, module.roi_head.test_cfg
        results = head.predict_by_feat(logits, instances, metas, cfg, rescale=True)
        return module.add_pred_to_datasample(merged, results)

    def _predict_boxes(self, view: dict[str, Any]) -> tuple[tuple[Tensor, ...], list[DetDataSample]]:
        """Returns the feature maps of one view, and samples with its boxes in pixels of the original images."""
        module = self.module
        view = module.data_preprocessor(view, False)
        features, samples = module.extract_feat(view['inputs']), view['data_samples']
        proposals = module.rpn_head.predict(features, samples, rescale=False)
        metas = [sample.metainfo for sample in samples]
        boxes = module.roi_head.predict_bbox(features, metas, proposals, module.roi_head.test_cfg, rescale=True)
        return features, module.add_pred_to_datasample(samples, boxes)

    def _predict_masks(
        self, features: tuple[Tensor, ...], samples: list[DetDataSample], instances: list[InstanceData]
    ) -> Tensor:
        """Returns the mask probabilities (boxes, classes, 28, 28) of all boxes in one view, with its flip undone."""
        module, boxes = self.module, []
        for sample, found in zip(samples, instances, strict=True):
            scaled = found.bboxes * found.bboxes.new_tensor(sample.scale_factor).repeat(2)
            boxes.append(bbox_flip(scaled, sample.img_shape, sample.flip_direction) if sample.flip else scaled)
        rois = bbox2roi(boxes)
        if not len(rois):
            return rois.new_empty(0, module.roi_head.mask_head.num_classes, 1, 1)
        masks = module.roi_head._mask_forward(features, rois)['mask_preds'].sigmoid()
        parts = masks.split([len(part) for part in boxes])
        axes = [FLIP_AXES[sample.flip_direction] if sample.flip else () for sample in samples]
        return torch.cat([part.flip(reversed_axes) for part, reversed_axes in zip(parts, axes, strict=True)])
