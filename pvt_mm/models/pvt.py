"""The Pyramid Vision Transformer (Wang et al., ICCV 2021, arXiv 2102.12122) in plain PyTorch, bottom-up.

Letters are the paper's, except that N = H * W tokens, and its N_i is ``num_heads``: B images, H x W pixels or tokens
(H first), C channels, P patch size, R reduction ratio. Tokens stay (B, N, C) in memory from the first layer to the
last: that is a channels-last map, so neither the convolutions nor the outputs need a copy.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class PatchEmbed(nn.Module):
    """LayerNorm(Reshape(x, P) W): section 3.2 with the norm of the authors' release; with P = R, equation 3.

    As in the authors' release, Reshape and W are one convolution of stride P, which drops the rows and columns that do
    not fill a patch.
    """

    def __init__(self, in_channels: int, embed_dims: int, patch_size: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, embed_dims, patch_size, stride=patch_size)
        # NOTE: eps is 1e-5 here and 1e-6 in the encoder layers, as in the authors' release.
        self.norm = nn.LayerNorm(embed_dims, eps=1e-5)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Returns the tokens (B, N, C) of a map (B, C_in, H, W), and their grid (H // P, W // P)."""
        x = self.proj(x)  # (B, C, H / P, W / P)
        H, W = x.shape[2:]
        return self.norm(to_tokens(x)), (H, W)


def to_tokens(x: Tensor) -> Tensor:
    """Views a map (B, C, H, W) as tokens (B, N, C)."""
    return x.flatten(2).transpose(1, 2)  # (B, N, C)


def to_map(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Views tokens (B, N, C) of an (H, W) grid as a map (B, C, H, W) in channels-last memory."""
    return x.unflatten(1, size).permute(0, 3, 1, 2)  # (B, C, H, W)


class PositionEmbedding(nn.Module):
    """Position embeddings for one grid of tokens, resampled bilinearly to the grid at hand (section 4.2)."""

    def __init__(self, grid: tuple[int, int], embed_dims: int):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(1, *grid, embed_dims))  # (1, H, W, C)

    def forward(self, size: tuple[int, int]) -> Tensor:
        """Returns the embeddings of an (H, W) grid: (1, N, C)."""
        table = self.table.permute(0, 3, 1, 2)  # (1, C, H, W)
        return to_tokens(F.interpolate(table, size=size, mode='bilinear', align_corners=False))


class SRA(nn.Module):
    """Spatial-reduction attention (equations 1 to 4): keys and values come from a map R times smaller on each side."""

    def __init__(self, embed_dims: int, num_heads: int, sr_ratio: int, drop_rate: float, attn_drop_rate: float):
        super().__init__()
        self.num_heads = num_heads
        self.attn_drop_rate = attn_drop_rate
        self.q = nn.Linear(embed_dims, embed_dims)
        self.kv = nn.Linear(embed_dims, 2 * embed_dims)
        self.sr = PatchEmbed(embed_dims, embed_dims, sr_ratio) if sr_ratio > 1 else None
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.proj_drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return self.attend(x, self.reduce(x, size))

    def reduce(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Returns SR(x), the tokens (B, N / R^2, C) of equation 3."""
        return x if self.sr is None else self.sr(to_map(x, size))[0]

    def attend(self, x: Tensor, reduced: Tensor) -> Tensor:
        """Returns the attention (B, N, C) of the tokens (B, N, C) to the reduced ones (B, N / R^2, C)."""
        q = self.q(x).unflatten(2, (self.num_heads, -1))  # (B, N, heads, d_head)
        # Equation 2, where Q, K and V are all x: one SR(x) gives the keys and values of all heads.
        k, v = self.kv(reduced).unflatten(2, (2, self.num_heads, -1)).unbind(2)  # (B, N / R^2, heads, d_head) each
        q, k, v = [tokens.transpose(1, 2) for tokens in (q, k, v)]  # (B, heads, tokens, d_head) each
        dropout_p = self.attn_drop_rate if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p)  # (B, heads, N, d_head), equation 4
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))  # (B, N, C), equation 1


class FFN(nn.Module):
    """The feed-forward layer: two linear layers with an exact GELU between them."""

    def __init__(self, embed_dims: int, hidden_dims: int, drop_rate: float):
        super().__init__()
        self.fc1 = nn.Linear(embed_dims, hidden_dims)
        self.fc2 = nn.Linear(hidden_dims, embed_dims)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.expand(x))))

    def expand(self, x: Tensor) -> Tensor:
        return F.gelu(self.fc1(x))  # (B, N, E * C)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., 2016): in training, drops the residual of a sample with probability drop_prob."""

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if self.drop_prob == 0 or not self.training:
            return x
        keep_prob = 1 - self.drop_prob
        return x / keep_prob * x.new_empty(len(x), 1, 1).bernoulli_(keep_prob)


class EncoderLayer(nn.Module):
    """A pre-norm Transformer encoder layer with SRA (section 3.3)."""

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        sr_ratio: int,
        mlp_ratio: int,
        drop_rate: float,
        attn_drop_rate: float,
        drop_path_rate: float,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dims, eps=1e-6)
        self.attn = SRA(embed_dims, num_heads, sr_ratio, drop_rate, attn_drop_rate)
        self.norm2 = nn.LayerNorm(embed_dims, eps=1e-6)
        self.ffn = FFN(embed_dims, embed_dims * mlp_ratio, drop_rate)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), size))
        return x + self.drop_path(self.ffn(self.norm2(x)))


class Stage(nn.Module):
    """A patch embedding, its position embedding, and encoder layers (Figure 3)."""

    def __init__(
        self,
        patch_embed: PatchEmbed,
        pos_embed: PositionEmbedding,
        layers: Sequence[EncoderLayer],
        drop_rate: float,
        with_cp: bool,
    ):
        super().__init__()
        self.patch_embed = patch_embed
        self.pos_embed = pos_embed
        self.pos_drop = nn.Dropout(drop_rate)
        self.layers = nn.ModuleList(layers)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        """Returns the map (B, C, H // P, W // P) of a map (B, C_in, H, W)."""
        x, size = self.embed(x)
        return to_map(self.encode(x, size), size)

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Returns the tokens (B, N, C) of a map with their positions added, and their grid (H, W)."""
        x, size = self.patch_embed(x)
        return x + self.pos_embed(size).to(x.dtype), size

    def encode(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Runs the encoder layers on tokens (B, N, C)."""
        x = self.pos_drop(x)
        for layer in self.layers:
            if self.with_cp and torch.is_grad_enabled():
                x = checkpoint(layer, x, size, use_reentrant=False)
            else:
                x = layer(x, size)
        return x  # (B, N, C)


class ClassToken(nn.Module):
    """The token that gathers the whole image in the last stage (section 4.1; put first, as in ViT), and its norm."""

    def __init__(self, embed_dims: int):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, embed_dims))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1, embed_dims))
        self.norm = nn.LayerNorm(embed_dims, eps=1e-6)

    def forward(self, x: Tensor, stage: Stage) -> Tensor:
        """Returns the token's feature (B, C) after ``stage``, which must have R = 1, on a map (B, C_in, H, W)."""
        x, size = stage.embed(x)
        token = (self.token + self.pos_embed).to(x.dtype).expand(x.shape[0], -1, -1)
        x = stage.encode(torch.cat([token, x], dim=1), size)  # (B, 1 + N, C)
        return self.norm(x[:, 0])


class PyramidVisionTransformer(nn.Module):
    """Pyramid Vision Transformer: an image to a pyramid of maps, at strides 4, 8, 16 and 32 in Table 1's models.

    The hyperparameters of section 3.4 are sequences with one entry a stage. Weights are initialized as in the authors'
    release: position embeddings, the class token and linear layers by a truncated normal distribution of std 0.02,
    biases 0; convolutions as PyTorch does.

    Args:
        embed_dims: C, channels.
        depths: L, encoder layers.
        num_heads: N, attention heads.
        patch_sizes: P, patch size.
        sr_ratios: R, reduction ratio of SRA.
        mlp_ratios: E, expansion ratio of the feed-forward layer.
        in_channels: Channels of the image.
        img_size: (H, W) in pixels of the images that the position embeddings are for.
        drop_rate: Dropout after the position embedding, the attention and both layers of the FFN.
        attn_drop_rate: Dropout of the attention weights.
        drop_path_rate: Stochastic depth of the last layer; it rises linearly from 0 at the first.
        with_cls_token: Whether the last stage returns the feature of a class token in place of its map.
        with_cp: Whether the backward pass recomputes each layer instead of keeping its activations.

    Shape:
        - Input: (B, in_channels, H, W), of any size that leaves every stage and its spatial reduction a token.
        - Output: a tuple of (B, C_i, H_i, W_i) in channels-last memory, H_i = H_{i-1} // P_i; with a class token the
          last is (B, C).
    """

    def __init__(
        self,
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (3, 4, 6, 3),  # PVT-Small; Table 1 prints 3 for stage 2, see ARCHS in archs.py
        num_heads: Sequence[int] = (1, 2, 5, 8),
        patch_sizes: Sequence[int] = (4, 2, 2, 2),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        mlp_ratios: Sequence[int] = (8, 8, 4, 4),
        in_channels: int = 3,
        img_size: tuple[int, int] = (224, 224),
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        with_cls_token: bool = False,
        with_cp: bool = False,
    ):
        super().__init__()
        drop_path_rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device='cpu').tolist())
        (H, W), channels = img_size, in_channels
        self.stages = nn.ModuleList()
        for C, L, heads, P, R, E in zip(embed_dims, depths, num_heads, patch_sizes, sr_ratios, mlp_ratios, strict=True):
            H, W = H // P, W // P
            layers = [EncoderLayer(C, heads, R, E, drop_rate, attn_drop_rate, next(drop_path_rates)) for _ in range(L)]
            embeddings = PatchEmbed(channels, C, P), PositionEmbedding((H, W), C)
            self.stages.append(Stage(*embeddings, layers, drop_rate, with_cp))
            channels = C
        self.cls_token = ClassToken(channels) if with_cls_token else None
        self.apply(init_weights)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outputs = []
        *others, last = self.stages
        for stage in others:
            x = stage(x)
            outputs.append(x)  # (B, C, H, W)
        outputs.append(last(x) if self.cls_token is None else self.cls_token(x, last))
        return tuple(outputs)


def init_weights(module: nn.Module) -> None:
    """Initializes a module's own parameters as the authors' release does."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, PositionEmbedding):
        nn.init.trunc_normal_(module.table, std=0.02)
    elif isinstance(module, ClassToken):
        nn.init.trunc_normal_(module.token, std=0.02)
        nn.init.trunc_normal_(module.pos_embed, std=0.02)
