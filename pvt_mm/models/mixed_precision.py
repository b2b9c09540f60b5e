"""Attention and feed-forward layers under CUDA's autocast: the same values, with fewer bytes moved and kept.

Counted, not measured: tests/test_cuda.py has the bytes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pvt_mm.models.chunked_ffn import ChunkedFFN
from pvt_mm.models.eager import mixed_dtype
from pvt_mm.models.pvt import SRA


class MixedSRA(SRA):
    """An :class:`SRA` that casts its input once, for the queries and for the keys and values."""

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        dtype = mixed_dtype(x)
        if dtype is None:
            return super().forward(x, size)
        for_q, for_kv = _CastForTwo.apply(x, dtype)
        return self.attend(for_q, self.reduce(for_kv, size))


class MixedFFN(ChunkedFFN):
    """An FFN that keeps its input and the output of its GELU for the backward pass, and recomputes fc1's output."""

    def expand(self, x: Tensor) -> Tensor:
        dtype = mixed_dtype(x)
        if dtype is None or not torch.is_grad_enabled():
            return super().expand(x)
        return _GELULinear.apply(x, self.fc1.weight, self.fc1.bias, dtype)


class _CastForTwo(torch.autograd.Function):
    """Casts x once for two readers, whose gradients it adds in the type of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        ctx.dtype = x.dtype
        x = x.to(dtype)
        return x, x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, one: Tensor, other: Tensor) -> tuple[Tensor, None]:
        # The factor's type is the sum's.
        factor = one.new_ones(1, dtype=ctx.dtype)
        return torch.addcmul(one, other, factor, out=torch.empty_like(one, dtype=ctx.dtype)), None


class _GELULinear(torch.autograd.Function):
    """GELU(x W + b) in half precision, from x (..., C), W (C_out, C) and b (C_out).

    x is kept with columns of ones, so that one product gives the gradients of W and of b.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
        C = x.shape[-1]
        # Tensor cores need rows of multiples of 16 bytes.
        kept = x.new_empty(x.shape[:-1].numel(), C + 8 - C % 8, dtype=dtype)
        kept[:, :C].copy_(x.flatten(0, -2))
        kept[:, C:].fill_(1)
        weight, bias = weight.to(dtype), bias.to(dtype)
        ctx.save_for_backward(kept, weight, bias)
        hidden = torch.addmm(bias, kept[:, :C], weight.mT)
        return F.gelu(hidden).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        kept, weight, bias = ctx.saved_tensors
        C = weight.shape[1]
        hidden = torch.addmm(bias, kept[:, :C], weight.mT)
        of_hidden = torch.ops.aten.gelu_backward(grad.flatten(0, -2), hidden)  # (n, C_out)
        of_x = (of_hidden @ weight).float().view(*grad.shape[:-1], C)
        of_parameters = of_hidden.mT @ kept  # (C_out, C + ones)
        return of_x, of_parameters[:, :C].float(), of_parameters[:, C].float(), None


def use_mixed_layers(model: nn.Module) -> None:
    """Makes every :class:`SRA` and :class:`ChunkedFFN` in a model a mixed one, in place."""
    for module in model.modules():
        if type(module) is SRA:
            module.__class__ = MixedSRA
        elif type(module) is ChunkedFFN:
            module.__class__ = MixedFFN
