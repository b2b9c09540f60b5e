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
    """

    def __init__(self, scales: Sequence[float]):
        super().__init__()
        self.scales = tuple(scales)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Returns the maps, each (B, C, H, W), at (B, C, H * scale, W * scale), floored.

        Raises:
            ValueError: There are not as many maps as scales.
        """
        return tuple(
            x if scale == 1 else F.interpolate(x, scale_factor=scale, mode='bilinear', align_corners=False)
            for x, scale in zip(maps, self.scales, strict=True)
        )
