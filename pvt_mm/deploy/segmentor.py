"""MMSegmentation's encoder and decoder as an exportable module."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvt_mm.utils.errors import InputError


class Segmentor(nn.Module):
    """A segmentor with one decode head, from images to the label of each pixel of the original images.

    Shape:
        - Input: ``image`` (B, C, H, W), ``img_shape`` (2,) and ``ori_shape`` (2,), see :mod:`pvt_mm.deploy.graphs`.
        - Output: ``labels`` (B, height, width) of the original size.

    Raises:
        InputError: The model is tested on windows that slide.
    """

    task = 'semantic_segmentation'
    outputs = ('labels',)

    @staticmethod
    def fits(model: nn.Module) -> bool:
        """Returns whether a model is of this kind."""
        return hasattr(getattr(model, 'decode_head', None), 'cls_seg')

    def __init__(self, model: nn.Module):
        super().__init__()
        mode = model.test_cfg.get('mode', 'whole')
        if mode != 'whole':
            raise InputError(f'test_cfg.mode is {mode}: only whole images can be exported, set it to whole')
        self.model = model

    def forward(self, image: Tensor, img_shape: Tensor, ori_shape: Tensor) -> Tensor:
        head = self.model.decode_head
        height, width = _sides(img_shape)
        torch._check(height <= image.shape[2])
        torch._check(width <= image.shape[3])
        settings = dict(mode='bilinear', align_corners=head.align_corners)
        x = F.interpolate(head(self.model.extract_feat(image)), image.shape[2:], **settings)  # (B, classes, H, W)
        x = F.interpolate(x[:, :, :height, :width], _sides(ori_shape), **settings)
        if x.shape[1] == 1:
            return (x[:, 0].sigmoid() > head.threshold).long()
        return x.argmax(1)


def _sides(shape: Tensor) -> list[int]:
    sides = [side.item() for side in shape.unbind()]
    for side in sides:
        torch._check(side >= 1)
    return sides
