"""A feature pyramid interpolated from the layers of a backbone of one stride, such as ViT (footnote 3 of the paper)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from pvt_mm.registry import MODELS


@MODELS.register_module()
class InterpolatedPyramid(nn.Module):
    """Resizes the height and width of each feature map by its own factor of ``scales``. It has no parameters.

    All layers of ViT have the stride of its patches; footnote 3 of the paper interpolates four of them to the strides
    of a pyramid. MMSegmentation's necks for that add convolutions, which the parameters of Table 8 exclude.
    """

    def __init__(self, scales: Sequence[float]):
        super().__init__()
        self.scales = tuple(scales)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Returns the maps, each (B, C, H, W), at (B, C, H * scale, W * scale), floored.

        Raises:
            ValueError: The number of maps is not the number of scales.
        """
        return tuple(
            x if scale == 1 else F.interpolate(x, scale_factor=scale, mode='bilinear', align_corners=False)
            for x, scale in zip(maps, self.scales, strict=True)
        )
