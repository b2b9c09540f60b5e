"""Attention on CUDA with heads whose width is not a multiple of 8: zeros pad them, and the values stay the same.

CUDA's fused attention takes multiples of 8 alone. It copies other heads in half precision, and in float32 PyTorch falls
back to whole matrices of attention. Here the weights are padded, so that heads come out as wide as they must be.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from pvt_mm.models.eager import is_plain
from pvt_mm.models.mixed_precision import MixedSRA


class PaddedSRA(MixedSRA):
    """An SRA whose heads are padded on CUDA; d' is the padded d_head."""

    def attend(self, x: Tensor, reduced: Tensor) -> Tensor:
        if x.device.type != 'cuda' or not all(is_plain(layer, nn.Linear) for layer in (self.q, self.kv, self.proj)):
            return super().attend(x, reduced)
        return self.attend_padded(x, reduced)

    def attend_padded(self, x: Tensor, reduced: Tensor) -> Tensor:
        """As :meth:`SRA.attend`, on any device."""
        d = self.q.out_features // self.num_heads
        q, kv = (F.linear(tokens, *pad_heads(layer, d)) for tokens, layer in ((x, self.q), (reduced, self.kv)))
        q = q.unflatten(2, (self.num_heads, -1))  # (B, N, heads, d')
        k, v = kv.unflatten(2, (2, self.num_heads, -1)).unbind(2)  # (B, N / R^2, heads, d') each
        q, k, v = [tokens.transpose(1, 2) for tokens in (q, k, v)]  # (B, heads, tokens, d') each
        dropout_p = self.attn_drop_rate if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, scale=d**-0.5)  # (B, heads, N, d')
        weight = F.pad(self.proj.weight.unflatten(1, (-1, d)), (0, -d % 8)).flatten(1)  # (C, heads * d')
        return self.proj_drop(F.linear(x.transpose(1, 2).flatten(2), weight, self.proj.bias))  # (B, N, C)


def pad_heads(layer: nn.Linear, d: int) -> tuple[Tensor, Tensor]:
    """Returns weight and bias of a layer whose outputs are heads of width d, with d padded to a multiple of 8."""
    weight = F.pad(layer.weight.unflatten(0, (-1, d)), (0, 0, 0, -d % 8))  # (heads, d', C)
    bias = F.pad(layer.bias.unflatten(0, (-1, d)), (0, -d % 8))  # (heads, d')
    return weight.flatten(0, 1), bias.flatten()
