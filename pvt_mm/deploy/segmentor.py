"""MMSegmentation's encoder and decoder as an exportable module."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvt_mm.deploy.operators import label_map
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
        x = x[:, :, :height, :width]
        if x.shape[1] == 1:
            return (F.interpolate(x, _sides(ori_shape), **settings)[:, 0].sigmoid() > head.threshold).long()
        rows, columns = (
            _taps(old, new, head.align_corners) for old, new in zip((height, width), _sides(ori_shape), strict=True)
        )
        return label_map(x.permute(0, 2, 3, 1), *rows, *columns)


def _taps(old: int, new: int, align_corners: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the two of ``old`` places that each of ``new`` ones is between, and the weight of the second.

    They are those of ``torch.nn.functional.interpolate``.
    """
    places = torch.arange(new, dtype=torch.float32)
    if align_corners:
        places = places * ((old - 1) / max(new - 1, 1))
    else:
        places = ((places + 0.5) * (old / new) - 0.5).clamp(min=0)
    first = places.long()
    return first, (first + 1).clamp(max=old - 1), places - first


def _sides(shape: Tensor) -> list[int]:
    sides = [side.item() for side in shape.unbind()]
    for side in sides:
        torch._check(side >= 1)
    return sides
