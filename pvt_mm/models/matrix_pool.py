"""Linear SRA's average as two matrix products, in compiled and exported models, for maps of any size.

PyTorch's own adaptive pooling has loops of fixed lengths in compiled code, so that Inductor compiles the model again
for each size, and ONNX takes it only where 7 divides the sides of a map of one size.
"""

import torch
from torch import Tensor

from pvt_mm.models.eager import is_eager
from pvt_mm.models.pvt_v2 import POOL_SIZE, LinearSRA


class MatrixPoolSRA(LinearSRA):
    """A :class:`LinearSRA` that pools by matrices where the model is compiled or exported, or must be deterministic."""

    def pool(self, x: Tensor) -> Tensor:
        # CUDA's backward pass of adaptive pooling has no deterministic algorithm.
        if is_eager() and not torch.are_deterministic_algorithms_enabled():
            return super().pool(x)
        rows, columns = bins(x.shape[2], x), bins(x.shape[3], x)  # (P, H) and (P, W)
        return average(average(x, columns).mT, rows).mT  # (B, C, P, P)


def average(x: Tensor, members: Tensor) -> Tensor:
    """Returns the means (..., P) of x (..., N) over bins, whose tokens are 1 in ``members`` (P, N)."""
    # 0 and 1 are exact in half precision, and quotients may not be.
    return x @ members.mT / members.sum(1)


def bins(side: int, like: Tensor) -> Tensor:
    """Returns which of ``side`` tokens each of the P bins of adaptive pooling has: a matrix (P, side) of 0 and 1.

    Bin i has the tokens from floor(i * side / P) to ceil((i + 1) * side / P). It is of the type and device of ``like``.
    """
    tokens, bin = torch.arange(side, device=like.device), torch.arange(POOL_SIZE, device=like.device)
    start, end = bin * side // POOL_SIZE, ((bin + 1) * side + POOL_SIZE - 1) // POOL_SIZE
    return ((tokens >= start[:, None]) & (tokens < end[:, None])).to(like.dtype)
