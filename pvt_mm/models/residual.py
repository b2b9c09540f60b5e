"""The residual of stochastic depth in one pass over memory, instead of three forward and two backward."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pvt_mm.models.eager import is_eager, is_plain
from pvt_mm.models.pvt import DropPath, EncoderLayer
from pvt_mm.models.pvt_v2 import EncoderLayerV2


class OnePassLayer(EncoderLayer):
    """An :class:`EncoderLayer` that scales a branch by its samples' masks while it adds it."""

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        if not is_supported(self.drop_path, x):
            return super().forward(x, size)
        keep_prob = 1 - self.drop_path.drop_prob
        x = add_kept(x, self.attn(self.norm1(x), size), keep_prob)
        return add_kept(x, self.ffn(self.norm2(x)), keep_prob)


class OnePassLayerV2(EncoderLayerV2):
    """As :class:`OnePassLayer`, of PVT v2."""

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        if not is_supported(self.drop_path, x):
            return super().forward(x, size)
        keep_prob = 1 - self.drop_path.drop_prob
        x = add_kept(x, self.attn(self.norm1(x), size), keep_prob)
        return add_kept(x, self.ffn(self.norm2(x), size), keep_prob)


def is_supported(drop_path: DropPath, x: Tensor) -> bool:
    """Returns whether stochastic depth scales branches of ``x``, and nothing but :class:`DropPath` would do it."""
    if not is_eager() or x.dtype not in (torch.float32, torch.float64) or not is_plain(drop_path, DropPath):
        return False
    return drop_path.training and drop_path.drop_prob > 0


def add_kept(x: Tensor, branch: Tensor, keep_prob: float) -> Tensor:
    """Returns x + branch / keep_prob for samples kept with probability keep_prob, and x for the others."""
    # NOTE: in the type of x. That of a branch under autocast rounds 1 / keep_prob by up to 0.4%.
    return _AddScaled.apply(x, branch, x.new_empty(len(x), 1, 1).bernoulli_(keep_prob).div_(keep_prob))


class _AddScaled(torch.autograd.Function):
    """x + scale * branch, of (B, N, C), (B, 1, 1) and (B, N, C), in the type of x."""

    # `out` casts while it writes, and keeps autocast from casting the branch first.
    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        ctx.dtype = branch.dtype
        return torch.addcmul(x, branch, scale, out=torch.empty_like(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (scale,) = ctx.saved_tensors
        return grad, torch.mul(grad, scale, out=torch.empty_like(grad, dtype=ctx.dtype)), None
