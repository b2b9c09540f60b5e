"""The Pyramid Vision Transformer backbone (Wang et al., ICCV 2021, arXiv 2102.12122), in one file, bottom-up.

Letters are the paper's: B images, H x W pixels or tokens, N = H * W tokens, C channels, P patch size, R reduction.
Tokens stay (B, N, C) from the first layer to the last. That is the memory of a channels-last map, so an output is a
permuted view of the tokens and costs no copy.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pvt_mm.models import cpu
from pvt_mm.registry import MODELS


class Arch(NamedTuple):
    """The sizes of a PVT, one entry a stage (paper, section 3.4)."""

    embed_dims: tuple[int, ...]
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    patch_sizes: tuple[int, ...]
    sr_ratios: tuple[int, ...]
    mlp_ratios: tuple[int, ...]


# Table 1; small_wide is Table 9's, whose heads are 64 * 1.4 = 89 wide.
# NOTE: stage 2 of small and medium has 4 layers, as in the authors' release, and not 3: only with 4 do they have the
# 24.5 M and 44.2 M parameters of Table 2.
# fmt: off
ARCHS = {
    #                  C: embed_dims         L: depths      N: num_heads  P: patch_sizes  R: sr_ratios  E: mlp_ratios
    'tiny':       Arch((64, 128, 320, 512), (2, 2,  2, 2), (1, 2, 5, 8), (4, 2, 2, 2),   (8, 4, 2, 1), (8, 8, 4, 4)),
    'small':      Arch((64, 128, 320, 512), (3, 4,  6, 3), (1, 2, 5, 8), (4, 2, 2, 2),   (8, 4, 2, 1), (8, 8, 4, 4)),
    'medium':     Arch((64, 128, 320, 512), (3, 4, 18, 3), (1, 2, 5, 8), (4, 2, 2, 2),   (8, 4, 2, 1), (8, 8, 4, 4)),
    'large':      Arch((64, 128, 320, 512), (3, 8, 27, 3), (1, 2, 5, 8), (4, 2, 2, 2),   (8, 4, 2, 1), (8, 8, 4, 4)),
    'small_wide': Arch((89, 178, 445, 712), (3, 4,  6, 3), (1, 2, 5, 8), (4, 2, 2, 2),   (8, 4, 2, 1), (8, 8, 4, 4)),
}
# fmt: on


def project(layer: nn.Linear, x: Tensor) -> Tensor:
    """Returns ``layer(x)``, on a CPU by the faster library."""
    return cpu.linear(x, layer.weight, layer.bias) if cpu.takes(x) and is_plain(layer) else layer(x)


def is_plain(layer: nn.Module) -> bool:
    """Returns whether a layer is its weight and bias alone: neither replaced (an adapter, quantised) nor hooked."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return type(layer) is nn.Linear and not any(hooks)


class PatchEmbed(nn.Module):
    """LayerNorm(Reshape(x, P) W): the patch embedding of section 3.2, and with P = R the reduction of equation 3.

    Rows and columns that do not fill a patch are dropped, as the reference's convolution with stride P drops them.
    """

    def __init__(self, in_channels: int, embed_dims: int, patch_size: int):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Linear(patch_size**2 * in_channels, embed_dims)
        # NOTE: PyTorch's default eps, 1e-5, here and 1e-6 in the encoder layers, as in the authors' release.
        self.norm = nn.LayerNorm(embed_dims, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(project(self.proj, patches(x, self.patch_size)))  # (B, H / P, W / P, embed_dims)


def patches(x: Tensor, P: int) -> Tensor:
    """Cuts a (B, H, W, C) map into patches, each flattened: (B, H // P, W // P, P * P * C)."""
    B, H, W, C = x.shape
    if cpu.is_exporting():
        # A slice would bind H and W to the multiples of P; the backward pass of `unfold` is four times slower.
        x = x.unfold(1, P, P).unfold(2, P, P)  # (B, H / P, W / P, C, P, P)
        return x.permute(0, 1, 2, 4, 5, 3).flatten(3)  # (B, H / P, W / P, P * P * C)
    H, W = H // P, W // P
    x = x[:, : H * P, : W * P].reshape(B, H, P, W, P, C)
    return x.transpose(2, 3).flatten(3)  # (B, H / P, W / P, P * P * C)


class PositionEmbedding(nn.Module):
    """A table of position embeddings for one grid of tokens, resampled bilinearly to any other (section 4.2)."""

    def __init__(self, grid: tuple[int, int], embed_dims: int):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(1, *grid, embed_dims))  # (1, H, W, C)
        self._cache: dict[tuple, tuple[Tensor, Tensor]] = {}

    def forward(self, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Returns the embeddings of an (H, W) grid in ``dtype``: (1, H * W, C)."""
        if torch.compiler.is_compiling():
            return self._resample(size, dtype)
        if size == tuple(self.table.shape[1:3]):
            return self.table.flatten(1, 2).to(dtype)
        if torch.is_grad_enabled() and self.table.requires_grad:
            return self._resample(size, dtype)
        return self._cached(size, dtype)

    def _resample(self, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
        return resample_grid(self.table, size).flatten(1, 2).to(dtype)

    def _cached(self, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
        # Writes through `.data` (MMEngine's EMA swap is one) leave no mark on a tensor, so only its values can tell
        # whether it is still the one that was resampled. On an accelerator comparing them would cost a synchronisation,
        # more than the resampling does.
        if self.table.device.type != 'cpu':
            return self._resample(size, dtype)
        source, resampled = self._cache.get((size, dtype), (None, None))
        if source is None or source.dtype != self.table.dtype or not torch.equal(source, self.table):
            source, resampled = self.table.detach().clone(), self._resample(size, dtype)
            while len(self._cache) >= 4:  # a test set has hundreds of sizes, and each table weighs as much as a map
                self._cache.pop(next(iter(self._cache)))
            self._cache[size, dtype] = source, resampled
        return resampled

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), '_cache': {}}


def resample_grid(table: Tensor, size: tuple[int, int]) -> Tensor:
    """Resamples a (1, H, W, C) table to (1, *size, C), bilinearly with half-pixel centres, as the reference does."""
    table = F.interpolate(table.permute(0, 3, 1, 2), size=size, mode='bilinear', align_corners=False)
    return table.permute(0, 2, 3, 1)


class SRA(nn.Module):
    """Spatial-reduction attention, equations 1 to 4: keys and values come from a map R times smaller on each side."""

    def __init__(self, embed_dims: int, num_heads: int, sr_ratio: int, attn_drop_rate: float, drop_rate: float):
        super().__init__()
        self.num_heads = num_heads
        self.attn_drop_rate = attn_drop_rate
        self.q = nn.Linear(embed_dims, embed_dims)
        self.kv = nn.Linear(embed_dims, 2 * embed_dims)
        self.sr = PatchEmbed(embed_dims, embed_dims, sr_ratio) if sr_ratio > 1 else None
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.proj_drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        q = project(self.q, x)  # (B, N, C)
        if self.sr is not None:
            x = self.sr(x.unflatten(1, size)).flatten(1, 2)  # (B, N / R^2, C)
        x = attention(q, project(self.kv, x), self.num_heads, self.attn_drop_rate if self.training else 0.0)
        return self.proj_drop(project(self.proj, x))


def attention(q: Tensor, kv: Tensor, num_heads: int, drop_rate: float) -> Tensor:
    """Multi-head attention of ``q`` (B, N, C) over the keys and values ``kv`` (B, M, 2 C), side by side: (B, N, C)."""
    if cpu.takes(q) and cpu.pays(kv.shape[1]) and not drop_rate:
        return cpu.attention(q, kv, num_heads)
    q = q.unflatten(2, (num_heads, -1)).transpose(1, 2)  # (B, heads, N, d_head)
    k, v = kv.unflatten(2, (2, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, M, d_head) each
    x = F.scaled_dot_product_attention(q, k, v, dropout_p=drop_rate)
    return x.transpose(1, 2).flatten(2)  # (B, N, C)


class FFN(nn.Module):
    """The feed-forward layer of the encoder: two linear layers with an exact GELU between them."""

    def __init__(self, embed_dims: int, hidden_dims: int, drop_rate: float):
        super().__init__()
        self.fc1 = nn.Linear(embed_dims, hidden_dims)
        self.fc2 = nn.Linear(hidden_dims, embed_dims)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        drops = self.training and self.drop.p
        if cpu.takes(x) and is_plain(self.fc1) and is_plain(self.fc2) and not drops:
            return cpu.ffn(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        return self.drop(project(self.fc2, self.drop(F.gelu(project(self.fc1, x)))))


class DropPath(nn.Module):
    """Stochastic depth: in training, drops a sample's whole residual with probability ``drop_prob``."""

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if self.drop_prob == 0 or not self.training:
            return x
        keep_prob = 1 - self.drop_prob
        return x * x.new_empty(len(x), 1, 1).bernoulli_(keep_prob).div_(keep_prob)


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
        self.attn = SRA(embed_dims, num_heads, sr_ratio, attn_drop_rate, drop_rate)
        self.norm2 = nn.LayerNorm(embed_dims, eps=1e-6)
        self.ffn = FFN(embed_dims, embed_dims * mlp_ratio, drop_rate)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), size))
        return x + self.drop_path(self.ffn(self.norm2(x)))


class Stage(nn.Module):
    """A patch embedding, its position embedding and the encoder layers behind it (Figure 3)."""

    def __init__(
        self,
        patch_embed: PatchEmbed,
        pos_embed: PositionEmbedding,
        layers: list[EncoderLayer],
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
        x, size = self.embed(x)
        x = self.encode(x, size)
        return x.unflatten(1, size)  # (B, H, W, C)

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Returns the tokens (B, N, C) of a map, positions added, and their grid (H, W)."""
        x = self.patch_embed(x)
        size = x.shape[1:3]
        return x.flatten(1, 2) + self.pos_embed(size, x.dtype), size

    def encode(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = self.pos_drop(x)
        for layer in self.layers:
            if self.with_cp and torch.is_grad_enabled():
                x = checkpoint(layer, x, size, use_reentrant=False)
            else:
                x = layer(x, size)
        return x  # (B, N, C)


class ClassToken(nn.Module):
    """The token in which the last stage gathers the whole image (section 3.4), its position embedding and norm."""

    def __init__(self, embed_dims: int):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, embed_dims))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1, embed_dims))
        self.norm = nn.LayerNorm(embed_dims, eps=1e-6)

    def forward(self, x: Tensor, stage: Stage) -> Tensor:
        """Returns what ``stage``, one without spatial reduction, makes of the token and a map: (B, embed_dims)."""
        x, size = stage.embed(x)
        token = (self.token + self.pos_embed).to(x.dtype).expand(x.shape[0], -1, -1)
        x = stage.encode(torch.cat([token, x], dim=1), size)  # (B, 1 + N, C)
        return self.norm(x[:, 0])


@MODELS.register_module()
class PVT(BaseModule):
    """Pyramid Vision Transformer backbone: an image to a pyramid of maps at strides 4, 8, 16 and 32.

    Built with the initialisation of the authors' release; ``init_weights``, which MMEngine's runner calls, loads what
    ``init_cfg`` names.

    Args:
        arch: ``tiny``, ``small``, ``medium`` or ``large`` (Table 1), ``small_wide`` (Table 9), or a dict of the fields
            of :class:`Arch`, a sequence each with one entry a stage.
        in_channels: Channels of the input. Weights made for 3 load into any number, see :func:`load_pretrained`.
        out_indices: The stages to return, counted from 0: an int or ascending ints. Stages behind the last are not
            built.
        pretrain_img_size: Size in pixels of the images the position embeddings are for: a side, or (H, W).
        drop_rate: Dropout after the position embedding, the attention's projection and both layers of the FFN.
        attn_drop_rate: Dropout of the attention weights.
        drop_path_rate: Stochastic depth of the last layer; it rises linearly from 0 over all layers of ``arch``.
        frozen_stages: How many stages are frozen, in eval mode and without gradients, from the constructor on: -1 none,
            0 the first patch and position embedding, n >= 1 the first n stages.
        with_cp: Whether to recompute each layer in the backward pass instead of keeping its activations.
        out_type: ``featmap``, or ``cls_token`` for classification: the last stage has a class token, and in place of
            its map returns that token's normalised feature.
        init_cfg: ``dict(type='Pretrained', checkpoint=..., prefix=...)``, whose other keys are the arguments of
            :func:`load_pretrained`, or any other initialiser of MMEngine.

    Raises:
        ValueError: An argument is not what is described here; the message says what is allowed.

    Shape:
        - Input: (B, in_channels, H, W), H and W at least 32 (more with other patch sizes or reduction ratios).
        - Output: a tuple of (B, C_i, H_i, W_i) in channels-last memory, H_1 = H // 4, H_{i+1} = H_i // 2; with
          ``cls_token`` the last is (B, C_4).
    """

    def __init__(
        self,
        arch: str | dict = 'small',
        in_channels: int = 3,
        out_indices: int | tuple[int, ...] = (0, 1, 2, 3),
        pretrain_img_size: int | tuple[int, int] = 224,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        frozen_stages: int = -1,
        with_cp: bool = False,
        out_type: str = 'featmap',
        init_cfg: dict | list[dict] | None = None,
    ):
        if not isinstance(init_cfg, (dict, list, type(None))):
            raise ValueError(
                f"init_cfg must be a dict such as dict(type='Pretrained', checkpoint=...), got {init_cfg!r}"
            )
        super().__init__(init_cfg)
        self.arch = arch = resolve_arch(arch)
        self.out_indices = _resolve_out_indices(out_indices, len(arch.depths))
        self.in_channels = in_channels
        self.frozen_stages = frozen_stages
        self.cls_token = None
        self.min_size = minimum_size(arch)
        if not isinstance(in_channels, int) or in_channels < 1:
            raise ValueError(f'in_channels must be a positive integer, got {in_channels!r}')
        if not isinstance(frozen_stages, int) or not -1 <= frozen_stages <= len(arch.depths):
            raise ValueError(f'frozen_stages must be from -1 (none) to {len(arch.depths)} (all), got {frozen_stages!r}')
        for name, rate in dict(
            drop_rate=drop_rate, attn_drop_rate=attn_drop_rate, drop_path_rate=drop_path_rate
        ).items():
            if not isinstance(rate, (int, float)) or not 0 <= rate < 1:
                raise ValueError(f'{name} must be at least 0 and less than 1, got {rate!r}')

        if out_type not in ('featmap', 'cls_token'):
            raise ValueError(f"out_type must be 'featmap' or 'cls_token', got {out_type!r}")
        if out_type == 'cls_token' and (self.out_indices[-1] + 1 < len(arch.depths) or arch.sr_ratios[-1] > 1):
            raise ValueError(
                "out_type='cls_token' needs the last stage among out_indices, and no spatial reduction there; got "
                f'out_indices={self.out_indices} and sr_ratios={arch.sr_ratios}'
            )

        grids = pretrain_grids(arch.patch_sizes, pretrain_img_size)
        drop_path_rates = torch.linspace(0, drop_path_rate, sum(arch.depths), device='cpu').tolist()
        self.stages = nn.ModuleList()
        for i in range(self.out_indices[-1] + 1):
            dims, depth, heads, patch_size, sr_ratio, mlp_ratio = (column[i] for column in arch)
            first = sum(arch.depths[:i])
            self.stages.append(
                Stage(
                    PatchEmbed(arch.embed_dims[i - 1] if i else in_channels, dims, patch_size),
                    PositionEmbedding(grids[i], dims),
                    [
                        EncoderLayer(dims, heads, sr_ratio, mlp_ratio, drop_rate, attn_drop_rate, rate)
                        for rate in drop_path_rates[first : first + depth]
                    ],
                    drop_rate,
                    with_cp,
                )
            )
        if out_type == 'cls_token':
            self.cls_token = ClassToken(arch.embed_dims[-1])
        self._initialise()
        for module in self._frozen_modules():
            module.requires_grad_(False)
        self.train()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if not torch.compiler.is_compiling():
            self._check_input(x)
        x = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        outputs = []
        for i, stage in enumerate(self.stages):
            if self.cls_token is not None and i + 1 == len(self.stages):
                return (*outputs, self.cls_token(x, stage))  # (B, C)
            x = stage(x)
            if i in self.out_indices:
                outputs.append(x.permute(0, 3, 1, 2))  # (B, C, H, W)
        return tuple(outputs)

    def _check_input(self, x: Tensor) -> None:
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f'the input must be (B, {self.in_channels}, H, W), got {tuple(x.shape)}')
        if not x.is_floating_point():
            raise ValueError(f'the input must be normalised, in floating point, got {x.dtype}')
        H, W = x.shape[2:]
        if min(H, W) < self.min_size:
            raise ValueError(
                f'the input is {H} x {W} pixels (H x W), and PVT needs at least {self.min_size} x {self.min_size}: '
                'resize or pad the images'
            )

    def init_weights(self) -> None:
        """Loads the weights that ``init_cfg`` names; without one, the initialisation of the constructor stands.

        Raises:
            CheckpointError: The weights cannot be read, or do not fit.
        """
        from pvt_mm.checkpoint import load_pretrained  # it needs this module

        cfgs = self.init_cfg if isinstance(self.init_cfg, list) else [self.init_cfg]
        if all((cfg or {}).get('type') != 'Pretrained' for cfg in cfgs):
            super().init_weights()
            return
        if len(cfgs) > 1:
            raise ValueError("init_cfg must be one dict where its type is 'Pretrained', which loads every parameter")
        load_pretrained(self, **{key: value for key, value in cfgs[0].items() if key != 'type'})
        self._is_init = True

    def train(self, mode: bool = True) -> 'PVT':
        """Sets the training mode; frozen stages stay in eval mode."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def _frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        first = [self.stages[0].patch_embed, self.stages[0].pos_embed]
        last = [self.cls_token] if self.cls_token and self.frozen_stages == len(self.stages) else []
        return [*first, *self.stages[: self.frozen_stages], *last]

    def _initialise(self) -> None:
        # NOTE: the reference's patch embedding and spatial reduction are convolutions, which it leaves at PyTorch's
        # default; nn.Linear's default is the same distribution.
        projections = {module.proj for module in self.modules() if isinstance(module, PatchEmbed)}
        for module in self.modules():
            if isinstance(module, PositionEmbedding):
                nn.init.trunc_normal_(module.table, std=0.02)
            elif isinstance(module, ClassToken):
                nn.init.trunc_normal_(module.token, std=0.02)
                nn.init.trunc_normal_(module.pos_embed, std=0.02)
            elif isinstance(module, nn.Linear) and module not in projections:
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)


def resolve_arch(arch: str | dict) -> Arch:
    """Returns the sizes that ``arch`` names or spells out.

    Raises:
        ValueError: An unknown name, a missing or unknown key, or sizes that do not fit each other.
    """
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ValueError(f'unknown arch {arch!r}: choose from {", ".join(ARCHS)}, or give a dict of the sizes')
        return ARCHS[arch]
    if not isinstance(arch, dict) or set(arch) != set(Arch._fields):
        given = sorted(map(str, arch)) if isinstance(arch, dict) else arch
        raise ValueError(f'arch must be a name or a dict with the keys {", ".join(Arch._fields)}; got {given}')
    if not all(isinstance(value, (list, tuple)) for value in arch.values()):
        raise ValueError(f'every entry of arch must be a list or tuple of one number a stage; got {arch}')
    sizes = Arch(**{key: tuple(value) for key, value in arch.items()})
    if len({len(column) for column in sizes}) != 1 or not sizes.depths:
        lengths = {key: len(column) for key, column in sizes._asdict().items()}
        raise ValueError(f'every entry of arch must have one number a stage; got lengths {lengths}')
    for key, column in sizes._asdict().items():
        if not all(isinstance(number, int) and number > 0 for number in column):
            raise ValueError(f'every number in arch must be a positive integer; got {key}={column}')
    for dims, heads in zip(sizes.embed_dims, sizes.num_heads, strict=True):
        if dims % heads:
            raise ValueError(f'embed_dims must be divisible by num_heads; got {dims} and {heads}')
    return sizes


def pretrain_grids(patch_sizes: Sequence[int], pretrain_img_size: int | tuple[int, int]) -> list[tuple[int, int]]:
    """Returns the (H, W) grid of tokens of each stage for an image of ``pretrain_img_size`` pixels.

    Raises:
        ValueError: The size is no int or pair of ints, or leaves the last stage no token.
    """
    sides = pretrain_img_size if isinstance(pretrain_img_size, (list, tuple)) else (pretrain_img_size,) * 2
    least = math.prod(patch_sizes)
    if len(sides) != 2 or not all(isinstance(side, int) and side >= least for side in sides):
        raise ValueError(f'pretrain_img_size must be an int or (H, W) of at least {least}, got {pretrain_img_size!r}')
    grids = []
    for patch_size in patch_sizes:
        sides = tuple(side // patch_size for side in sides)
        grids.append(sides)
    return grids


def minimum_size(arch: Arch) -> int:
    """Returns the least side in pixels that leaves every stage a token, also after its spatial reduction."""
    stride, least = 1, 1
    for patch_size, sr_ratio in zip(arch.patch_sizes, arch.sr_ratios, strict=True):
        stride *= patch_size
        least = max(least, stride * sr_ratio)
    return least


def _resolve_out_indices(out_indices: int | tuple[int, ...], num_stages: int) -> tuple[int, ...]:
    indices = tuple(out_indices) if isinstance(out_indices, (list, tuple)) else (out_indices,)
    if not indices or not all(isinstance(i, int) and 0 <= i < num_stages for i in indices):
        raise ValueError(f'out_indices must be stages from 0 to {num_stages - 1}, got {out_indices!r}')
    if sorted(set(indices)) != list(indices):
        raise ValueError(f'out_indices must ascend and not repeat, got {out_indices!r}')
    return indices
