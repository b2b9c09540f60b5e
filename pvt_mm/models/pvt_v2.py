"""PVT v2 (Wang et al., CVMJ 2022, arXiv 2106.13797) in plain PyTorch: what differs from :mod:`~pvt_mm.models.pvt`.

Letters and memory are as there. Overlapping patch embeddings (section 3.3) and a depthwise convolution in the
feed-forward layer (section 3.4) see the zeros around the image, and so say where a token is: no position embedding is
left. Linear SRA (section 3.2) pools keys and values to a fixed grid.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pvt_mm.models.pvt import SRA, DropPath, PatchEmbed, to_map, to_tokens

POOL_SIZE = 7  # P of equation 2: the side of the grid of linear SRA's keys and values


class OverlapPatchEmbed(nn.Module):
    """A convolution of stride S, kernel 2S - 1 and zero padding S - 1, and a norm (section 3.3)."""

    def __init__(self, in_channels: int, embed_dims: int, stride: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, embed_dims, 2 * stride - 1, stride=stride, padding=stride - 1)
        # NOTE: eps is 1e-5 here and in SRA, and 1e-6 in the encoder layers and after a stage, as in the release.
        self.norm = nn.LayerNorm(embed_dims, eps=1e-5)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Returns the tokens (B, N, C) of a map (B, C_in, H, W), and their grid (ceil(H / S), ceil(W / S))."""
        x = self.proj(x)  # (B, C, ceil(H / S), ceil(W / S))
        H, W = x.shape[2:]
        return self.norm(to_tokens(x)), (H, W)


class LinearSRA(SRA):
    """Linear spatial-reduction attention (equation 2): keys and values come from a map averaged to P x P tokens.

    As in the release, and not in the paper, a 1 x 1 convolution, a norm and GELU follow the average. Where P does not
    divide the map the bins overlap, as PyTorch's do.
    """

    def __init__(self, embed_dims: int, num_heads: int, drop_rate: float, attn_drop_rate: float):
        super().__init__(embed_dims, num_heads, 1, drop_rate, attn_drop_rate)
        self.sr: PatchEmbed = PatchEmbed(embed_dims, embed_dims, 1)

    def reduce(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Returns the reduced tokens (B, P * P, C)."""
        return F.gelu(self.sr(self.pool(to_map(x, size)))[0])

    def pool(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, POOL_SIZE)  # (B, C, P, P)


class ConvFFN(nn.Module):
    """The feed-forward layer with a 3 x 3 depthwise convolution before GELU (section 3.4)."""

    def __init__(self, embed_dims: int, hidden_dims: int, drop_rate: float):
        super().__init__()
        self.fc1 = nn.Linear(embed_dims, hidden_dims)
        self.dwconv = nn.Conv2d(hidden_dims, hidden_dims, 3, padding=1, groups=hidden_dims)
        self.fc2 = nn.Linear(hidden_dims, embed_dims)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = self.dwconv(to_map(self.expand(x), size))  # (B, E * C, H, W), channels-last
        return self.drop(self.fc2(self.drop(F.gelu(to_tokens(x)))))  # (B, N, C)

    def expand(self, x: Tensor) -> Tensor:
        return self.fc1(x)  # (B, N, E * C)


class LinearConvFFN(ConvFFN):
    """The feed-forward layer of models with linear SRA: as in the release, and not in the paper, ReLU follows fc1."""

    def expand(self, x: Tensor) -> Tensor:
        return F.relu(super().expand(x))  # (B, N, E * C)


class EncoderLayerV2(nn.Module):
    """A pre-norm Transformer encoder layer."""

    def __init__(self, attn: SRA, ffn: ConvFFN, embed_dims: int, drop_path_rate: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dims, eps=1e-6)
        self.attn = attn
        self.norm2 = nn.LayerNorm(embed_dims, eps=1e-6)
        self.ffn = ffn
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), size))
        return x + self.drop_path(self.ffn(self.norm2(x), size))


class StageV2(nn.Module):
    """A patch embedding, encoder layers, and a norm: the next stage reads the normalized map."""

    def __init__(
        self, patch_embed: OverlapPatchEmbed, layers: Sequence[EncoderLayerV2], embed_dims: int, with_cp: bool
    ):
        super().__init__()
        self.patch_embed = patch_embed
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(embed_dims, eps=1e-6)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        """Returns the map (B, C, ceil(H / S), ceil(W / S)) of a map (B, C_in, H, W)."""
        x, size = self.patch_embed(x)
        for layer in self.layers:
            if self.with_cp and torch.is_grad_enabled():
                x = checkpoint(layer, x, size, use_reentrant=False)
            else:
                x = layer(x, size)
        return to_map(self.norm(x), size)


class PyramidVisionTransformerV2(nn.Module):
    """PVT v2: an image to a pyramid of maps, at strides 4, 8, 16 and 32 in Table 1's models.

    The hyperparameters are sequences with one entry a stage. Weights are initialized as in the authors' release: linear
    layers by a normal distribution of std 0.02, convolutions of std sqrt(2 / fan_out), biases 0.

    Args:
        embed_dims: C, channels.
        depths: L, encoder layers.
        num_heads: N, attention heads.
        strides: S, stride of the patch embedding.
        sr_ratios: R, reduction ratio of SRA.
        mlp_ratios: E, expansion ratio of the feed-forward layer.
        linear: Whether attention is linear SRA, in all stages; ``sr_ratios`` is not used then.
        in_channels: Channels of the image.
        drop_rate: Dropout after the attention and both layers of the FFN.
        attn_drop_rate: Dropout of the attention weights.
        drop_path_rate: Stochastic depth of the last layer; it rises linearly from 0 at the first.
        with_cp: Whether the backward pass recomputes each layer instead of keeping its activations.

    Shape:
        - Input: (B, in_channels, H, W), of any size that leaves every spatial reduction a token.
        - Output: a tuple of (B, C_i, H_i, W_i) in channels-last memory, H_i = ceil(H_{i-1} / S_i).
    """

    def __init__(
        self,
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (3, 4, 6, 3),  # B2; Table 1 prints 3 for stage 2, see ARCHS_V2 in archs.py
        num_heads: Sequence[int] = (1, 2, 5, 8),
        strides: Sequence[int] = (4, 2, 2, 2),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        mlp_ratios: Sequence[int] = (8, 8, 4, 4),
        linear: bool = False,
        in_channels: int = 3,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
    ):
        super().__init__()
        drop_path_rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device='cpu').tolist())
        channels = in_channels
        self.stages = nn.ModuleList()
        for C, L, heads, S, R, E in zip(embed_dims, depths, num_heads, strides, sr_ratios, mlp_ratios, strict=True):
            layers = []
            for _ in range(L):
                if linear:
                    attn, ffn = LinearSRA(C, heads, drop_rate, attn_drop_rate), LinearConvFFN(C, C * E, drop_rate)
                else:
                    attn, ffn = SRA(C, heads, R, drop_rate, attn_drop_rate), ConvFFN(C, C * E, drop_rate)
                layers.append(EncoderLayerV2(attn, ffn, C, next(drop_path_rates)))
            self.stages.append(StageV2(OverlapPatchEmbed(channels, C, S), layers, C, with_cp))
            channels = C
        self.apply(init_weights)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)  # (B, C, H, W)
        return tuple(outputs)


def init_weights(module: nn.Module) -> None:
    """Initializes a module's own parameters as the authors' release does."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        kernel = torch.empty_like(module.weight, memory_format=torch.channels_last)
        if kernel.is_contiguous():  # 1 x 1 and depthwise: the same memory, with the strides of their gradients
            module.weight.data = kernel  # DistributedDataParallel warns where the strides of the two differ
        # NOTE: fan_out counts one group: sqrt(2 / 9) for the depthwise convolution. PVT v1 left PyTorch's default.
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
