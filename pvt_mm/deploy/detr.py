"""MMDetection's DETR as an exportable module."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvt_mm.deploy.candidates import clip, gather, to_original


class Detr(nn.Module):
    """A DETR, from images to boxes. Each image has ``max_per_img`` of them.

    Shape:
        - Input: ``image`` (B, C, H, W), ``img_shape`` (B, 2) and ``ori_shape`` (B, 2), see :mod:`pvt_mm.deploy.graphs`.
        - Output: ``boxes`` (B, N, 4), ``scores`` (B, N), ``labels`` (B, N).
    """

    task = 'detection'
    outputs = ('boxes', 'scores', 'labels')

    @staticmethod
    def fits(model: nn.Module) -> bool:
        """Returns whether a model is of this kind. Deformable DETR and others have heads of their own."""
        return type(getattr(model, 'bbox_head', None)).__name__ == 'DETRHead'

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, img_shape: Tensor, ori_shape: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        model, head = self.model, self.model.bbox_head
        x = model.extract_feat(image)[-1]  # (B, C, h, w)
        padding = _padding(img_shape, image, x)  # (B, h, w)
        positions = model.positional_encoding(padding).flatten(2).mT  # (B, h * w, C)
        padding = padding.flatten(1)
        memory = model.encoder(x.flatten(2).mT, positions, padding)
        queries, _ = model.pre_decoder(memory)
        states = model.forward_decoder(**queries, memory_mask=padding, memory_pos=positions)['hidden_states']
        logits, boxes = (layers[0] for layers in head(states[-1:]))  # (B, queries, classes), (B, queries, 4)

        count = head.test_cfg.get('max_per_img', logits.shape[1])
        if head.loss_cls.use_sigmoid:
            scores, pairs = logits.sigmoid().flatten(1).topk(count)
            queries, labels = pairs // head.num_classes, pairs % head.num_classes
        else:
            scores, labels = logits.softmax(2)[..., :-1].max(2)
            scores, queries = scores.topk(count)
            labels = labels.gather(1, queries)
        centres, sides = gather(boxes, queries).split(2, 2)  # as fractions of the image
        boxes = torch.cat([centres - sides / 2, centres + sides / 2], 2) * img_shape.flip(1).repeat(1, 2)[:, None]
        return to_original(clip(boxes, img_shape), img_shape, ori_shape), scores, labels


def _padding(img_shape: Tensor, image: Tensor, x: Tensor) -> Tensor:
    """Returns which places (B, h, w) of a map x (B, C, h, w) of images (B, C, H, W) are padding."""
    heights, widths = img_shape[:, :, None].unbind(1)  # (B, 1)
    rows, columns = (torch.arange(side, device=x.device) for side in image.shape[2:])
    padding = (rows >= heights)[:, :, None] | (columns >= widths)[:, None]  # (B, H, W)
    return F.interpolate(padding[:, None].to(x.dtype), x.shape[2:])[:, 0].bool()
