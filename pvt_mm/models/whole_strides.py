"""Overlapping patch embeddings of maps padded to whole strides, in compiled models that train at any size.

The size of a convolution's output, (H - 1) // S + 1, is a sum to Inductor, and those of maps are products of sums. As
of torch 2.13 it fails to order their strides ("Invalid ranges"). After padding the size is ceil(H / S), one term.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pvt_mm.models.eager import is_eager
from pvt_mm.models.pvt_v2 import OverlapPatchEmbed


class WholeStridesPatchEmbed(OverlapPatchEmbed):
    """An :class:`OverlapPatchEmbed` that pads its map below and on the right where a compiled model trains.

    The values are the same: what is added are zeros that the convolution would see anyway.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        if is_eager() or not torch.is_grad_enabled():
            return super().forward(x)
        (H, W), (S, _) = x.shape[2:], self.proj.stride
        return super().forward(F.pad(x, (0, -(-W // S) * S - W, 0, -(-H // S) * S - H)))
