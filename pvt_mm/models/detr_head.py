"""DETR's head, in single precision whatever the rest of the detector is in."""

from contextlib import nullcontext

import torch
from mmdet.models.dense_heads import DETRHead as MMDetDETRHead
from torch import Tensor

from pvt_mm.registry import MODELS


@MODELS.register_module()
class DETRHead(MMDetDETRHead):
    """MMDetection's DETR head, whose matching and losses hold under mixed precision.

    The matching cost and the GIoU loss work on boxes in pixels, and the area of one is beyond what fp16 can hold
    (65504) from 256 x 256 pixels on: MMDetection's head then matches on infinite costs, and its loss is NaN.
    Predicting the hundred boxes in single precision costs nothing that can be measured.

    Args:
        num_classes: Classes, without the background.
        loss_cls: The classification loss; ``class_weight`` weighs the classes and ``bg_cls_weight`` the background.
        kwargs: Those of MMDetection's head.
    """

    def __init__(self, num_classes: int, loss_cls: dict, **kwargs):
        # NOTE: MMDetection's own does this for itself alone, and not for a class that extends it.
        class_weight = loss_cls.get('class_weight', 1.0)
        background = loss_cls.get('bg_cls_weight', class_weight)
        loss_cls = {key: value for key, value in loss_cls.items() if key != 'bg_cls_weight'}
        loss_cls['class_weight'] = [class_weight] * num_classes + [background]
        super().__init__(num_classes=num_classes, loss_cls=loss_cls, **kwargs)
        self.bg_cls_weight = background

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Predicts classes and boxes from what the decoder's layers return.

        Args:
            hidden_states: (layers, B, queries, C), in any precision.

        Returns:
            Class scores before the softmax, (layers, B, queries, classes + 1), and boxes as fractions of the image,
            (layers, B, queries, 4) as cx, cy, w, h; both in single precision.
        """
        device = hidden_states.device.type  # the meta device has no autocast to turn off
        single = torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
        with single:
            scores, boxes = super().forward(hidden_states.to(self.fc_cls.weight.dtype))
        return scores.float(), boxes.float()
