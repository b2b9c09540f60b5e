"""The backbones that configs name: checked arguments, freezing, and weights from ``init_cfg``."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from pvt_mm.checkpoint.loading import AnyFormat, load_pretrained, translate_backbone
from pvt_mm.checkpoint.reader import INIT_CFG_ADVICE, download_advice
from pvt_mm.models.archs import (
    ARCHS,
    ARCHS_V2,
    IMAGENET,
    IMAGENET_V2,
    Arch,
    ArchV2,
    first_stages,
    resolve_arch,
    resolve_weights,
)
from pvt_mm.models.chunked_ffn import ChunkedConvFFN, ChunkedLinearConvFFN
from pvt_mm.models.eager import replace_layers
from pvt_mm.models.mixed_precision import MixedFFN, MixedLinearSRA, MixedSRA
from pvt_mm.models.padded_heads import PaddedSRA
from pvt_mm.models.pvt import FFN, SRA, EncoderLayer, PyramidVisionTransformer
from pvt_mm.models.pvt_v2 import (
    ConvFFN,
    EncoderLayerV2,
    LinearConvFFN,
    LinearSRA,
    OverlapPatchEmbed,
    PyramidVisionTransformerV2,
)
from pvt_mm.models.residual import OnePassLayer, OnePassLayerV2
from pvt_mm.models.whole_strides import WholeStridesPatchEmbed
from pvt_mm.registry import MODELS


class Backbone(AnyFormat, BaseModule):
    """What :class:`PVT` and :class:`PVTv2` share: a pyramid of stages, some of them frozen, and its weights."""

    stages: nn.ModuleList
    arch: Arch | ArchV2
    in_channels: int
    out_indices: tuple[int, ...]
    frozen_stages: int
    init_cfg: dict | list[dict] | None

    def configure(
        self,
        arch: Arch | ArchV2,
        in_channels: int,
        out_indices: tuple[int, ...],
        frozen_stages: int,
        init_cfg: dict | list[dict] | None,
    ) -> None:
        """Sets what a backbone keeps of its arguments, and freezes its first stages."""
        self.arch = arch
        self.min_size = arch.min_size  # Dynamo of torch 2.1 reads no property of a named tuple
        self.in_channels = in_channels
        self.out_indices = out_indices
        self.frozen_stages = frozen_stages
        self.init_cfg = init_cfg
        for module in self._frozen_modules():
            module.requires_grad_(False)
        self.train()

    def load_weights(self, weights: str | None) -> None:
        """Loads what the argument ``weights`` names, if anything.

        Raises:
            CheckpointError: The checkpoint cannot be read, or does not fit.
        """
        if weights is not None:
            with download_advice('give weights=PATH'):
                load_pretrained(self, weights)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Returns the outputs of the stages in ``out_indices`` for images (B, in_channels, H, W)."""
        self._check_input(x)
        outputs = super().forward(x.contiguous(memory_format=torch.channels_last))
        return tuple(outputs[i] for i in self.out_indices)

    def _check_input(self, x: Tensor) -> None:
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f'the input must be (B, {self.in_channels}, H, W), got {tuple(x.shape)}')
        if not x.is_floating_point():
            raise ValueError(f'the input must be normalized, in floating point, got {x.dtype}')
        (H, W), least = x.shape[2:], self.min_size
        if min(H, W) < least:
            raise ValueError(
                f'the input is {H} x {W} pixels (H x W), and {type(self).__name__} needs at least {least} x {least}: '
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

    def train(self, mode: bool = True) -> 'Backbone':
        """Sets the training mode; frozen stages stay in eval mode."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def _frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        return [*self._embeddings(), *self.stages[: self.frozen_stages]]

    def _embeddings(self) -> list[Any]:
        """Returns what the first stage puts before its layers."""
        return [self.stages[0].patch_embed]

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Returns the depth of a parameter for layer-wise learning rates, and the number of depths.

        The L encoder layers of all stages have depths 1 to L. The embeddings of a stage have that of the stage's first
        layer, those of the first stage 0. What follows the layers of a stage has that of the next stage's first layer;
        after the last it is L + 1, which is also that of whatever follows the backbone.

        Args:
            param_name: Name of the parameter, with ``prefix``.
            prefix: What the names of the backbone's parameters begin with.

        Returns:
            The depth, 0 to L + 1, and L + 2.
        """
        depths = self.arch.depths[: len(self.stages)]
        _, index, part, *rest = param_name.removeprefix(prefix).split('.')
        stage = int(index)
        inside = {'layers': int(rest[0]) + 1 if part == 'layers' else 0, 'norm': depths[stage] + 1}
        return sum(depths[:stage]) + inside.get(part, min(stage, 1)), sum(depths) + 2


@MODELS.register_module()
class PVT(Backbone, PyramidVisionTransformer, BaseModule):
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
            of :class:`~pvt_mm.models.archs.Arch`, a sequence each with one entry a stage.
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
        weights = resolve_weights(weights, arch, IMAGENET, init_cfg)
        arch = resolve_arch(arch, ARCHS)
        out_indices = _resolve_out_indices(out_indices, len(arch.depths))
        _check_rates(drop_rate=drop_rate, attn_drop_rate=attn_drop_rate, drop_path_rate=drop_path_rate)
        _check_arguments(arch, in_channels, frozen_stages, init_cfg)
        if out_type not in ('featmap', 'cls_token'):
            raise ValueError(f"out_type must be 'featmap' or 'cls_token', got {out_type!r}")
        if out_type == 'cls_token' and (out_indices[-1] + 1 < len(arch.depths) or arch.sr_ratios[-1] > 1):
            raise ValueError(
                "out_type='cls_token' needs the last stage among out_indices, and no spatial reduction there; got "
                f'out_indices={out_indices} and sr_ratios={arch.sr_ratios}'
            )
        built = first_stages(arch, out_indices[-1] + 1)
        super().__init__(
            **built._asdict(),
            in_channels=in_channels,
            img_size=_resolve_img_size(arch.patch_sizes, pretrain_img_size),
            drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
            drop_path_rate=_last_rate(drop_path_rate, built, arch),
            with_cls_token=out_type == 'cls_token',
            with_cp=with_cp,
        )
        for stage, C, heads in zip(self.stages, built.embed_dims, built.num_heads, strict=True):
            attention = PaddedSRA if C // heads % 8 else MixedSRA
            replace_layers(stage, {EncoderLayer: OnePassLayer, SRA: attention, FFN: MixedFFN})
        self.configure(arch, in_channels, out_indices, frozen_stages, init_cfg)
        self.load_weights(weights)

    def _embeddings(self) -> list[Any]:
        return [self.stages[0].patch_embed, self.stages[0].pos_embed]

    def _frozen_modules(self) -> list[nn.Module]:
        last = [self.cls_token] if self.cls_token and self.frozen_stages == len(self.stages) else []
        return [*super()._frozen_modules(), *last]

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """As :meth:`Backbone.get_layer_depth`; the class token belongs to its stage's embeddings."""
        kind, part, *_ = param_name.removeprefix(prefix).split('.')
        if kind == 'cls_token':
            last = f'stages.{len(self.stages) - 1}'
            return super().get_layer_depth(f'{last}.norm' if part == 'norm' else f'{last}.pos_embed')
        return super().get_layer_depth(param_name, prefix)


@MODELS.register_module()
class PVTv2(Backbone, PyramidVisionTransformerV2, BaseModule):
    """PVT v2 backbone: an image to a pyramid of maps at strides 4, 8, 16 and 32.

    As :class:`PVT`, without position embeddings: the constructor initializes as the authors' release does, or from
    ``weights``; ``init_weights`` loads the checkpoint that ``init_cfg`` names; state dicts of any known format load.
    Layers are replaced by others of the same values: on a CPU feed-forward layers that work in chunks
    (:mod:`~pvt_mm.models.chunked_ffn`), on CUDA attention for autocast (:mod:`~pvt_mm.models.mixed_precision`), and in
    training residuals in one pass (:mod:`~pvt_mm.models.residual`). Compiled and exported models keep PyTorch's own,
    and have ways of sizes that change (:mod:`~pvt_mm.models.matrix_pool`, :mod:`~pvt_mm.models.whole_strides`).
    Not saved on CUDA: under autocast a feed-forward layer keeps three hidden maps for the backward pass, where that of
    PVT keeps one (``with_cp`` helps), and heads whose width is not a multiple of 8 are not padded.

    Args:
        arch: ``b0`` to ``b5``, ``b2_li`` with linear SRA (Table 1), or a dict of the fields of
            :class:`~pvt_mm.models.archs.ArchV2`: a sequence each with one entry a stage, and ``linear=True`` for linear
            SRA.
        in_channels: Channels of the input. Weights trained with 3 load into any number, see
            :func:`~pvt_mm.checkpoint.loading.load_pretrained`.
        out_indices: The stages to return, counted from 0: an int or ascending ints. Stages after the last of them are
            not built.
        drop_rate: Dropout after the attention's projection and both layers of the FFN.
        attn_drop_rate: Dropout of the attention weights.
        drop_path_rate: Stochastic depth of the last layer; it rises linearly from 0 over all layers of ``arch``.
        frozen_stages: How many stages are frozen, in eval mode and without gradients, from the constructor on: -1 none,
            0 the first patch embedding, n >= 1 the first n stages.
        with_cp: Whether the backward pass recomputes each layer instead of keeping its activations.
        out_type: ``featmap``, or ``avg_featmap`` for classification: the last stage returns the mean of its map.
        weights: What the constructor loads, strictly: ``'imagenet'``, the authors' release for ``arch`` (downloaded
            once), or a path, a URL or ``hf://owner/name[/file]``, of any format of :mod:`pvt_mm.checkpoint.formats`.
            Not together with ``init_cfg``.
        init_cfg: ``dict(type='Pretrained', checkpoint=..., prefix=...)``, whose other keys are the arguments of
            :func:`~pvt_mm.checkpoint.loading.load_pretrained`, or any other initializer of MMEngine.

    Raises:
        ValueError: An argument is not what is described here; the message says what is allowed.
        CheckpointError: ``weights`` cannot be read, or do not fit.

    Shape:
        - Input: (B, in_channels, H, W), H and W at least 29, with linear SRA 1 (others with other strides or reduction
          ratios).
        - Output: a tuple of (B, C_i, H_i, W_i) in channels-last memory, H_1 = ceil(H / 4), H_{i+1} = ceil(H_i / 2);
          with ``avg_featmap`` the last is (B, C_4).
    """

    def __init__(
        self,
        arch: str | dict = 'b2',
        in_channels: int = 3,
        out_indices: int | tuple[int, ...] = (0, 1, 2, 3),
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        frozen_stages: int = -1,
        with_cp: bool = False,
        out_type: str = 'featmap',
        weights: str | None = None,
        init_cfg: dict | list[dict] | None = None,
    ):
        weights = resolve_weights(weights, arch, IMAGENET_V2, init_cfg)
        arch = resolve_arch(arch, ARCHS_V2)
        out_indices = _resolve_out_indices(out_indices, len(arch.depths))
        _check_rates(drop_rate=drop_rate, attn_drop_rate=attn_drop_rate, drop_path_rate=drop_path_rate)
        _check_arguments(arch, in_channels, frozen_stages, init_cfg)
        if out_type not in ('featmap', 'avg_featmap'):
            raise ValueError(f"out_type must be 'featmap' or 'avg_featmap', got {out_type!r}")
        built = first_stages(arch, out_indices[-1] + 1)
        super().__init__(
            **built._asdict(),
            in_channels=in_channels,
            drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
            drop_path_rate=_last_rate(drop_path_rate, built, arch),
            with_cp=with_cp,
        )
        faster: dict[type[nn.Module], type[nn.Module]] = {
            OverlapPatchEmbed: WholeStridesPatchEmbed,
            EncoderLayerV2: OnePassLayerV2,
            SRA: MixedSRA,
            LinearSRA: MixedLinearSRA,
            ConvFFN: ChunkedConvFFN,
            LinearConvFFN: ChunkedLinearConvFFN,
        }
        replace_layers(self, faster)
        self.out_type = out_type
        self.configure(arch, in_channels, out_indices, frozen_stages, init_cfg)
        self.load_weights(weights)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        *others, last = super().forward(x)
        return (*others, last.mean((2, 3)) if self.out_type == 'avg_featmap' else last)


def _check_arguments(
    arch: Arch | ArchV2, in_channels: int, frozen_stages: int, init_cfg: dict | list[dict] | None
) -> None:
    if not isinstance(in_channels, int) or in_channels < 1:
        raise ValueError(f'in_channels must be a positive integer, got {in_channels!r}')
    if not isinstance(frozen_stages, int) or not -1 <= frozen_stages <= len(arch.depths):
        raise ValueError(f'frozen_stages must be from -1 (none) to {len(arch.depths)} (all), got {frozen_stages!r}')
    if not isinstance(init_cfg, (dict, list, type(None))):
        raise ValueError(f"init_cfg must be a dict such as dict(type='Pretrained', checkpoint=...), got {init_cfg!r}")


def _last_rate(drop_path_rate: float, built: Arch | ArchV2, arch: Arch | ArchV2) -> float:
    """Returns the stochastic depth of the last layer that is built, where that of the last of ``arch`` is given."""
    return drop_path_rate * (sum(built.depths) - 1) / max(sum(arch.depths) - 1, 1)


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
