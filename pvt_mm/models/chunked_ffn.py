"""The feed-forward layer in chunks of tokens, for CPUs: the same values, a fraction of the memory.

The hidden map of a layer at stride 4 is 137 MB for one image of 800 x 1344 pixels. In chunks it stays in the caches,
and in training each chunk is recomputed instead of kept. On a GPU every chunk would be more kernels to launch, so only
inputs on a CPU are cut.
"""

from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pvt_mm.models.eager import is_eager_cpu
from pvt_mm.models.pvt import FFN

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


def _chunk_length(hidden_dims: int, element_size: int) -> int:
    """Returns the number of tokens whose hidden values fill a chunk."""
    return max(1, CHUNK_BYTES * torch.get_num_threads() // (hidden_dims * element_size))
