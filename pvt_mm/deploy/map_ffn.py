"""PVTv2's feed-forward layers as convolutions of maps, in exported models.

In onnxruntime a depthwise convolution between two products of tokens costs two transpositions of the hidden map, which
is four to eight times as wide as the input.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from pvt_mm.models.pvt_v2 import ConvFFN, LinearConvFFN


class MapConvFFN(nn.Module):
    """A :class:`~pvt_mm.models.pvt_v2.ConvFFN` in eval mode, with its weights."""

    def __init__(self, ffn: ConvFFN):
        super().__init__()
        self.fc1, self.dwconv, self.fc2 = _pointwise(ffn.fc1), ffn.dwconv, _pointwise(ffn.fc2)
        self.relu = nn.ReLU() if isinstance(ffn, LinearConvFFN) else nn.Identity()

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = self.relu(self.fc1(x.mT.unflatten(2, size)))  # (B, E * C, H, W)
        return self.fc2(F.gelu(self.dwconv(x))).flatten(2).mT  # (B, N, C)


def replace_ffns(model: nn.Module) -> None:
    """Replaces the feed-forward layers of PVTv2 in a model."""
    for part in list(model.modules()):
        for name, child in part.named_children():
            if isinstance(child, ConvFFN):
                setattr(part, name, MapConvFFN(child))


def _pointwise(linear: nn.Linear) -> nn.Conv2d:
    """Returns a linear layer as a convolution of 1 x 1."""
    conv = nn.Conv2d(linear.in_features, linear.out_features, 1, device='meta')
    conv.weight = nn.Parameter(linear.weight[:, :, None, None], requires_grad=False)
    conv.bias = linear.bias
    return conv
