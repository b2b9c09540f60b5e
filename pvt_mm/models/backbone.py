"""PVT for OpenMMLab configs: names of archs, checked arguments, freezing, and weights from ``init_cfg``."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from pvt_mm.checkpoint.loading import AnyFormat, load_pretrained, translate_backbone
from pvt_mm.checkpoint.reader import INIT_CFG_ADVICE, download_advice
from pvt_mm.models.eager import replace_layers
from pvt_mm.models.mixed_precision import MixedFFN, MixedSRA
from pvt_mm.models.padded_heads import PaddedSRA
from pvt_mm.models.pvt import FFN, SRA, EncoderLayer, PyramidVisionTransformer
from pvt_mm.models.residual import OnePassLayer
from pvt_mm.registry import MODELS


class Arch(NamedTuple):
    """The sizes of a PVT, one entry a stage (section 3.4)."""

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
# The authors' release, trained on ImageNet-1k at 224 x 224 pixels.
IMAGENET = {
    arch: f'https://github.com/whai362/PVT/releases/download/v2/pvt_{arch}.pth'
    for arch in ('tiny', 'small', 'medium', 'large')
}


@MODELS.register_module()
class PVT(AnyFormat, PyramidVisionTransformer, BaseModule):
    """Pyramid Vision Transformer backbone: an image to a pyramid of maps at strides 4, 8, 16 and 32.

    The constructor initializes as the authors' release does, or from ``weights``; ``init_weights``, which MMEngine's
    runner calls, loads the checkpoint that ``init_cfg`` names. A state dict of any known format, of the backbone alone
    or of a model that contains it, loads as one of ours does.

    Layers are replaced by others of the same values: on a CPU feed-forward layers that work in chunks
    (:mod:`~pvt_mm.models.chunked_ffn`), on CUDA ones for autocast (:mod:`~pvt_mm.models.mixed_precision`) and for heads
    of odd widths (:mod:`~pvt_mm.models.padded_heads`), and in training residuals in one pass
    (:mod:`~pvt_mm.models.residual`). Compiled models keep only the padded heads.

    Args:
        arch: ``tiny``, ``small``, ``medium`` or ``large`` (Table 1), ``small_wide`` (Table 9), or a dict of the fields
            of :class:`Arch`, a sequence each with one entry a stage.
        in_channels: Channels of the input. Weights trained with 3 load into any number, see
            :func:`~pvt_mm.checkpoint.loading.load_pretrained`.
        out_indices: The stages to return, counted from 0: an int or ascending ints. Stages after the last of them are
            not built.
        pretrain_img_size: Size in pixels of the images the position embeddings are for: a side, or (H, W).
        drop_rate: Dropout after the position embedding, the attention's projection and both layers of the FFN.
        attn_drop_rate: Dropout of the attention weights.
        drop_path_rate: Stochastic depth of the last layer; it rises linearly from 0 over all layers of ``arch``.
        frozen_stages: How many stages are frozen, in eval mode and without gradients, from the constructor on: -1 none,
            0 the first patch and position embedding, n >= 1 the first n stages.
        with_cp: Whether the backward pass recomputes each layer instead of keeping its activations.
        out_type: ``featmap``, or ``cls_token`` for classification: the last stage has a class token, and returns that
            token's normalized feature instead of its map.
        weights: What the constructor loads, strictly: ``'imagenet'``, the authors' release for ``arch`` (downloaded
            once; there is none of ``small_wide``), or a path, a URL or ``hf://owner/name[/file]``, of any format of
            :mod:`pvt_mm.checkpoint.formats`. Not together with ``init_cfg``.
        init_cfg: ``dict(type='Pretrained', checkpoint=..., prefix=...)``, whose other keys are the arguments of
            :func:`~pvt_mm.checkpoint.loading.load_pretrained`, or any other initializer of MMEngine.

    Raises:
        ValueError: An argument is not what is described here; the message says what is allowed.
        CheckpointError: ``weights`` cannot be read, or do not fit.

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
        weights: str | None = None,
        init_cfg: dict | list[dict] | None = None,
    ):
        weights = _resolve_weights(weights, arch, init_cfg)
        arch = resolve_arch(arch)
        out_indices = _resolve_out_indices(out_indices, len(arch.depths))
        _check_rates(drop_rate=drop_rate, attn_drop_rate=attn_drop_rate, drop_path_rate=drop_path_rate)
        if not isinstance(in_channels, int) or in_channels < 1:
            raise ValueError(f'in_channels must be a positive integer, got {in_channels!r}')
        if not isinstance(frozen_stages, int) or not -1 <= frozen_stages <= len(arch.depths):
            raise ValueError(f'frozen_stages must be from -1 (none) to {len(arch.depths)} (all), got {frozen_stages!r}')
        if out_type not in ('featmap', 'cls_token'):
            raise ValueError(f"out_type must be 'featmap' or 'cls_token', got {out_type!r}")
        if out_type == 'cls_token' and (out_indices[-1] + 1 < len(arch.depths) or arch.sr_ratios[-1] > 1):
            raise ValueError(
                "out_type='cls_token' needs the last stage among out_indices, and no spatial reduction there; got "
                f'out_indices={out_indices} and sr_ratios={arch.sr_ratios}'
            )
        if not isinstance(init_cfg, (dict, list, type(None))):
            raise ValueError(
                f"init_cfg must be a dict such as dict(type='Pretrained', checkpoint=...), got {init_cfg!r}"
            )
        built = Arch(*(column[: out_indices[-1] + 1] for column in arch))
        total, layers = sum(arch.depths), sum(built.depths)
        super().__init__(
            *built,
            in_channels=in_channels,
            img_size=_resolve_img_size(arch.patch_sizes, pretrain_img_size),
            drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
            drop_path_rate=drop_path_rate * (layers - 1) / max(total - 1, 1),
            with_cls_token=out_type == 'cls_token',
            with_cp=with_cp,
        )
        self.init_cfg = init_cfg
        self.arch = arch
        self.in_channels = in_channels
        self.out_indices = out_indices
        self.frozen_stages = frozen_stages
        self.min_size = minimum_size(arch)
        for stage, C, heads in zip(self.stages, built.embed_dims, built.num_heads, strict=True):
            attention = PaddedSRA if C // heads % 8 else MixedSRA
            replace_layers(stage, {EncoderLayer: OnePassLayer, SRA: attention, FFN: MixedFFN})
        for module in self._frozen_modules():
            module.requires_grad_(False)
        self.train()
        if weights is not None:
            with download_advice('give weights=PATH'):
                load_pretrained(self, weights)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        self._check_input(x)
        outputs = super().forward(x.contiguous(memory_format=torch.channels_last))
        return tuple(outputs[i] for i in self.out_indices)

    def _check_input(self, x: Tensor) -> None:
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f'the input must be (B, {self.in_channels}, H, W), got {tuple(x.shape)}')
        if not x.is_floating_point():
            raise ValueError(f'the input must be normalized, in floating point, got {x.dtype}')
        H, W = x.shape[2:]
        if min(H, W) < self.min_size:
            raise ValueError(
                f'the input is {H} x {W} pixels (H x W), and PVT needs at least {self.min_size} x {self.min_size}: '
                'resize or pad the images'
            )

    def init_weights(self) -> None:
        """Loads the checkpoint that ``init_cfg`` names; without one, the constructor's initialization stands.

        Raises:
            ValueError: ``init_cfg`` is a list with a Pretrained in it.
            CheckpointError: The checkpoint cannot be read, or does not fit.
        """
        cfgs = self.init_cfg if isinstance(self.init_cfg, list) else [self.init_cfg or {}]
        if all(cfg.get('type') != 'Pretrained' for cfg in cfgs):
            super().init_weights()
            return
        if len(cfgs) > 1:
            raise ValueError("init_cfg must be one dict where its type is 'Pretrained', which loads every parameter")
        with download_advice(INIT_CFG_ADVICE):
            load_pretrained(self, **{key: value for key, value in cfgs[0].items() if key != 'type'})
        self._is_init = True

    def translate(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        translate_backbone(self, state_dict, prefix)

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

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Returns the depth of a parameter for layer-wise learning rates, and the number of depths.

        The L encoder layers of all stages have depths 1 to L. The embeddings of a stage have that of the stage's first
        layer, those of the first stage 0. The class token's norm has L + 1, as has whatever follows the backbone.

        Args:
            param_name: Name of the parameter, with ``prefix``.
            prefix: What the names of the backbone's parameters begin with.

        Returns:
            The depth, 0 to L + 1, and L + 2.
        """
        depths = self.arch.depths[: len(self.stages)]
        kind, *rest = param_name.removeprefix(prefix).split('.')
        if kind == 'cls_token':
            depth = sum(depths) + 1 if rest[0] == 'norm' else sum(depths[:-1]) + 1
        else:
            stage = int(rest[0])
            inside = int(rest[2]) + 1 if rest[1] == 'layers' else min(stage, 1)
            depth = sum(depths[:stage]) + inside
        return depth, sum(depths) + 2


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


def _resolve_weights(weights: str | None, arch: str | dict, init_cfg: dict | list[dict] | None) -> str | None:
    """Returns the checkpoint that ``weights`` names."""
    if weights is None:
        return None
    if init_cfg is not None:
        raise ValueError('weights and init_cfg both say what to load: give one of them')
    if not isinstance(weights, str):
        raise ValueError(f"weights must be 'imagenet', a path, a URL or hf://owner/name, got {weights!r}")
    if weights != 'imagenet':
        return weights
    if not isinstance(arch, str) or arch not in IMAGENET:
        raise ValueError(
            f'there are no published ImageNet weights of arch {arch!r}, only of {", ".join(IMAGENET)}: set weights=PATH'
        )
    return IMAGENET[arch]


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


def _resolve_img_size(patch_sizes: Sequence[int], img_size: int | tuple[int, int]) -> tuple[int, int]:
    sides = tuple(img_size) if isinstance(img_size, (list, tuple)) else (img_size,) * 2
    least = math.prod(patch_sizes)
    if len(sides) != 2 or not all(isinstance(side, int) and side >= least for side in sides):
        raise ValueError(f'pretrain_img_size must be an int or (H, W) of at least {least}, got {img_size!r}')
    return sides


def _check_rates(**rates: float) -> None:
    for name, rate in rates.items():
        if not isinstance(rate, (int, float)) or not 0 <= rate < 1:
            raise ValueError(f'{name} must be at least 0 and less than 1, got {rate!r}')
