"""A feature pyramid out of the layers of a columnar backbone, by interpolation alone (footnote 3)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from pvt_mm.registry import MODELS


@MODELS.register_module()
class InterpolatedPyramid(nn.Module):
    """Resamples each map of a backbone by a scale of its own; has no parameters.

    ViT's layers all have the stride of its patches; footnote 3 of the paper interpolates four of them to the strides of
    a pyramid. MMSegmentation's necks that do so add convolutions, which Table 8's parameters have no room for.

    Args:
        scales: What each map's height and width are multiplied with, first map first.
        mode: As in :func:`torch.nn.functional.interpolate`.

    Raises:
        ValueError: A scale is not above 0.
    """

    def __init__(self, scales: Sequence[float], mode: str = 'bilinear'):
        super().__init__()
        if not all(scale > 0 for scale in scales):
            raise ValueError(f'scales must be above 0, got {tuple(scales)}')
        self.scales = tuple(scales)
        self.mode = mode

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Returns the maps, each (B, C, H, W), at (B, C, H * scale, W * scale), floored.

        Raises:
            ValueError: There are not as many maps as scales.
        """
        return tuple(
            F.interpolate(
                x, scale_factor=scale, mode=self.mode, align_corners=None if self.mode == 'nearest' else False
            )
            for x, scale in zip(maps, self.scales, strict=True)
        )
