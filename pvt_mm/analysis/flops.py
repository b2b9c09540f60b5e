"""Parameters and multiply-adds of the model of a config, in total and by part, without data, weights or memory.

Counted on the meta device by ``torch.utils.flop_counter``: one per multiply-add of matrix products, including fused
attention, and convolutions, which papers call FLOPs. Like there, norms, activations and additions do not count.
"""

import copy
import functools
import warnings
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from pvt_mm.apis.channel_checks import check_widths
from pvt_mm.models.backbone import Backbone
from pvt_mm.utils.errors import InputError, config_errors


class Part(NamedTuple):
    """A part of a model: its name, its parameters in millions, and its multiply-adds per image in 1e9."""

    name: str
    params_m: float
    gflops: float


def default_shape(config: Config) -> tuple[int, int]:
    """Returns the (H, W) in pixels at which the paper counts models of a config's task.

    For a detector, H is the shorter side of its test images, and W is 1.6 H but at most their longer side: 800 x 1280
    in Table 11. A segmentor is counted at 512 x 512 (Table 5), a classifier at 224 x 224 (Table 2).
    """
    if config.get('default_scope') != 'mmdet':
        return (512, 512) if config.get('default_scope') == 'mmseg' else (224, 224)
    resize = next(step for step in config.test_dataloader.dataset.pipeline if step.type == 'Resize')
    shorter, longer = sorted(resize.scale)
    return shorter, min(longer, shorter * 8 // 5)


def count(config: Config, shape: tuple[int, int]) -> list[Part]:
    """Counts the model of a config on one image of ``shape`` (H, W) in pixels.

    Returns:
        The whole model (``model``) and then its parts: backbone, neck and heads. A PVT or PVTv2 is followed by its
        stages, and each stage by its embedding, attention and FFN.

    Raises:
        InputError: The model cannot be built, or the image is too small.
    """
    with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmengine')):
        with config_errors('the model cannot be built'):
            model = _build(config.model)
        check_widths(config.model, model)
        gflops = _gflops_by_module(model, shape)
    parts = [Part('model', _millions(model), gflops[''])]
    for name, child in model.named_children():
        if any(True for _ in child.parameters()):
            parts.append(Part(name, _millions(child), gflops[name]))
        if isinstance(child, Backbone):
            parts += _stages(name, child, gflops)
    return parts


def count_backbone(config: Config, shape: tuple[int, int]) -> float:
    """Returns the multiply-adds in 1e9 of the backbone of a config on one image of ``shape`` (H, W) in pixels."""
    with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmengine')):
        return _gflops_by_module(_build(config.model.backbone), shape)['']


def _build(model: dict) -> nn.Module:
    """Builds a model on the meta device, in eval mode and without gradients, which the counter would track."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # about losses, which are not computed here
        try:
            with torch.device('meta'):
                built = MODELS.build(copy.deepcopy(model))  # MMDetection modifies the config of DETR's head
        except RuntimeError:  # the constructor reads a tensor's value, as that of MMSegmentation's ViT
            built = MODELS.build(copy.deepcopy(model)).to('meta')
    for module in built.modules():
        if isinstance(module, (nn.LayerNorm, _BatchNorm)):
            module.forward = lambda x: x  # not counted, and slow on the meta device
    built.eval()  # returns None in MMDetection's ResNet
    return built.requires_grad_(False)


def _gflops_by_module(model: nn.Module, shape: tuple[int, int]) -> dict[str, float]:
    """Returns the multiply-adds in 1e9 of each module by its name; that of the model is ''."""
    counter = FlopCounterMode(display=False)
    counted = _count_calls(model, counter)
    if hasattr(model, 'roi_head'):
        model.forward = functools.partial(_forward_two_stages, model)
    elif hasattr(model, 'forward_transformer'):
        model.forward = functools.partial(_forward_transformer, model)
    elif isinstance(model, BaseModel):
        model.forward = functools.partial(model.forward, mode='tensor')
    try:
        with counter, torch.no_grad():
            model(torch.empty(1, 3, *shape, device='meta'))
    except ValueError as error:
        raise InputError(f'--shape {shape[0]} {shape[1]}: {error}') from None
    except NotImplementedError as error:
        raise InputError(f'{type(model).__name__} has an operation that cannot be counted: {error}') from None
    gflops: dict[str, float] = {}
    for name, module in reversed(list(model.named_modules())):  # children before parents
        inner = sum(gflops[f'{name}.{child}'.lstrip('.')] for child, _ in module.named_children())
        # MMDetection calls its heads' `forward` directly, without hooks: sum up their children.
        gflops[name] = counted[name] / 2e9 if name in counted else inner
    return gflops


def _count_calls(model: nn.Module, counter: FlopCounterMode) -> dict[str, int]:
    """Returns a dict that will hold what the counter counts in the calls of each module; older counters do not."""
    counted: dict[str, int] = {}
    for name, module in model.named_modules():

        def subtract(*_: object, name: str = name) -> None:
            counted[name] = counted.get(name, 0) - counter.get_total_flops()

        def add(*_: object, name: str = name) -> None:
            counted[name] += counter.get_total_flops()

        module.register_forward_pre_hook(subtract)
        module.register_forward_hook(add)
    return counted


def _forward_two_stages(model: nn.Module, image: torch.Tensor) -> None:
    """Runs a two-stage detector on an image, with the maximum number of boxes of a test.

    A box head gets as many boxes as there are proposals, a mask head as many as there are detections: 1000 and 100 in
    MMDetection's Mask R-CNN, which gives Table 10's GFLOPs. So does each of a cascade's (Table 4 of PVT v2).
    """
    features = model.extract_feat(image)
    model.rpn_head(features)
    numbers = {'bbox': model.test_cfg.rpn.max_per_img, 'mask': model.test_cfg.rcnn.max_per_img}
    for kind, number in numbers.items():
        extractors, heads = (getattr(model.roi_head, f'{kind}_{part}', []) for part in ('roi_extractor', 'head'))
        if not isinstance(heads, (list, nn.ModuleList)):  # no cascade
            extractors, heads = [extractors], [heads]
        for extractor, head in zip(extractors, heads, strict=True):
            head(image.new_empty(number, extractor.out_channels, *extractor.roi_layers[0].output_size))


def _forward_transformer(model: nn.Module, image: torch.Tensor) -> None:
    """Runs a DETR, which needs the size of each image without padding."""
    from mmdet.structures import DetDataSample

    size = tuple(image.shape[2:])
    model._forward(image, [DetDataSample(metainfo=dict(img_shape=size, batch_input_shape=size))])


def _stages(prefix: str, backbone: Backbone, gflops: dict[str, float]) -> list[Part]:
    kinds = dict(embedding=('patch_embed', 'pos_embed'), attention=('norm1', 'attn'), ffn=('norm2', 'ffn'))
    parts = []
    for i, stage in enumerate(backbone.stages):
        name = f'{prefix}.stages.{i}'
        parts.append(Part(name, _millions(stage), gflops[name]))
        for kind, names in kinds.items():
            inner = {key: module for key, module in stage.named_modules() if key.rpartition('.')[2] in names}
            params = sum(map(_millions, inner.values()))
            parts.append(Part(f'{name}.{kind}', params, sum(gflops[f'{name}.{key}'] for key in inner)))
    return parts


def _millions(module: nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6
