"""Attention and feed-forward layers under CUDA's autocast: the same values, with fewer bytes moved or kept.

Counted, not measured on a GPU: ``python -m tests.simulated_cuda.counts`` has the bytes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pvt_mm.models.chunked_ffn import ChunkedFFN
from pvt_mm.models.eager import is_plain, mixed_dtype
from pvt_mm.models.matrix_pool import MatrixPoolSRA
from pvt_mm.models.pvt import SRA


class MixedSRA(SRA):
    """An :class:`SRA` that casts its input once, for the queries and for the keys and values."""

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        dtype = mixed_dtype(x)
        if dtype is None:
            return super().forward(x, size)
        for_q, for_kv = _CastForTwo.apply(x, dtype)
        return self.attend(for_q, self.reduce(for_kv, size))


class MixedLinearSRA(MixedSRA, MatrixPoolSRA):
    """A linear SRA that casts its input once."""


class MixedFFN(ChunkedFFN):
    """An FFN that keeps fc1's input and the output of GELU for the backward pass, which recomputes fc1's product.

    This trades time for memory: in a step of PVT-Small on 16 images of 800 x 1344 pixels in bfloat16, 16.4 GB are kept
    instead of 23.1, for 7.8 GB more to move and 0.46e12 multiply-adds. To keep fc1's output instead, and to recompute
    GELU of it for the weights of fc2, would keep as much and move 4.9 GB more.
    """

    def expand(self, x: Tensor) -> Tensor:
        dtype = mixed_dtype(x)
        if dtype is None or not torch.is_grad_enabled() or not is_plain(self.fc1, nn.Linear):
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
    def backward(ctx: Any, grad_q: Tensor, grad_kv: Tensor) -> tuple[Tensor, None]:
        # The factor's type is the sum's.
        factor = grad_q.new_ones(1, dtype=ctx.dtype)
        return torch.addcmul(grad_q, grad_kv, factor, out=torch.empty_like(grad_q, dtype=ctx.dtype)), None


class _GELULinear(torch.autograd.Function):
    """GELU(x W + b) in half precision, from x (..., C), W (C_out, C) and b (C_out).

    x is kept with columns of ones, so that one product gives the gradients of W and of b.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
        C = x.shape[-1]
        # Tensor cores need rows of multiples of 16 bytes.
        x_ones = x.new_empty(x.shape[:-1].numel(), C + 8 - C % 8, dtype=dtype)
        x_ones[:, :C].copy_(x.flatten(0, -2))
        x_ones[:, C:].fill_(1)
        weight, bias = weight.to(dtype), bias.to(dtype)
        ctx.save_for_backward(x_ones, weight, bias)
        hidden = torch.addmm(bias, x_ones[:, :C], weight.mT)
        return F.gelu(hidden).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x_ones, weight, bias = ctx.saved_tensors
        C = weight.shape[1]
        needs_x, *needs_params, _ = ctx.needs_input_grad
        hidden = torch.addmm(bias, x_ones[:, :C], weight.mT)
        grad_hidden = torch.ops.aten.gelu_backward(grad.flatten(0, -2), hidden)  # (n, C_out)
        grad_x = (grad_hidden @ weight).float().view(*grad.shape[:-1], C) if needs_x else None
        if not any(needs_params):
            return grad_x, None, None, None
        grad_params = grad_hidden.mT @ x_ones  # (C_out, C + ones)
        return grad_x, grad_params[:, :C].float(), grad_params[:, C].float(), None
