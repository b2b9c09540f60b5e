"""The feed-forward layer in chunks of tokens, images or rows, for CPUs: the same values, a fraction of the memory.

The hidden map of a layer at stride 4 is 137 MB for one image of 800 x 1344 pixels. In chunks it stays in the caches,
and in training each chunk is recomputed instead of kept. A chunk of rows takes those next to it along, for the 3 x 3
convolution: up to 2, about 11% more to compute at 18 rows, those of B2's first stage with two threads. On a GPU every
chunk would be more kernels to launch, so only inputs on a CPU are cut.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pvt_mm.models.eager import is_eager_cpu
from pvt_mm.models.pvt import FFN
from pvt_mm.models.pvt_v2 import ConvFFN, LinearConvFFN

CHUNK_BYTES = 6 * 2**20  # of the hidden map, for each thread


class ChunkedFFN(FFN):
    """An :class:`FFN` that walks inputs on a CPU in chunks of tokens."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)  # (B * N, C)
        chunks = tokens.split(_chunk_length(self.fc1.out_features, x.element_size())) if is_eager_cpu(x) else (tokens,)
        if len(chunks) == 1:
            return super().forward(x)
        run = super().forward
        if torch.is_grad_enabled():
            run = partial(checkpoint, run, use_reentrant=False)
        return torch.cat([run(chunk) for chunk in chunks]).view(x.shape)


class ChunkedConvFFN(ConvFFN):
    """A :class:`ConvFFN` that walks inputs on a CPU in chunks of images, or of rows with those above and below."""

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        (H, W), B = size, x.shape[0]  # len would fix the batch of an exported model
        whole = super().forward  # Python before 3.12 has no super() in a comprehension
        if not is_eager_cpu(x) or (rows := _chunk_length(self.fc1.out_features * W, x.element_size())) >= B * H:
            return whole(x, size)
        run = partial(checkpoint, use_reentrant=False) if torch.is_grad_enabled() else _call
        if rows >= H:
            return torch.cat([run(whole, chunk, size) for chunk in x.split(rows // H)])
        images = [self._by_rows(image.unflatten(1, size).split(rows, 1), run) for image in x.split(1)]
        return torch.cat(images) if B > 1 else images[0]

    def _by_rows(self, chunks: Sequence[Tensor], run: Callable) -> Tensor:
        """Returns the tokens (1, N, C) of a map that is cut into rows: (1, H_i, W, C) each."""
        above = [chunks[0][:, :0], *(chunk[:, -1:] for chunk in chunks[:-1])]
        below = [*(chunk[:, :1] for chunk in chunks[1:]), chunks[-1][:, :0]]
        return torch.cat([run(self._rows, *three) for three in zip(above, chunks, below, strict=True)], dim=1)

    def _rows(self, above: Tensor, chunk: Tensor, below: Tensor) -> Tensor:
        """Returns the tokens (1, H_i * W, C) of a chunk (1, H_i, W, C), given the rows next to it, as far as it has."""
        x = torch.cat([above, chunk, below], 1)  # (1, H_i + 0 to 2, W, C)
        size = x.shape[1:3]
        x = super().forward(x.flatten(1, 2), (size[0], size[1])).unflatten(1, size)
        # The other rows lack one next to them. To cut them from the output rather than from the hidden map costs less.
        return x[:, above.shape[1] : above.shape[1] + chunk.shape[1]].flatten(1, 2)


class ChunkedLinearConvFFN(ChunkedConvFFN, LinearConvFFN):
    """A :class:`LinearConvFFN` that walks inputs on a CPU in chunks."""


def _call(function: Callable, *args: Any) -> Any:
    return function(*args)


def _chunk_length(hidden_dims: int, element_size: int) -> int:
    """Returns the number of tokens whose hidden values fill a chunk."""
    return max(1, CHUNK_BYTES * torch.get_num_threads() // (hidden_dims * element_size))
