"""Small detectors whose random weights predict something: exports take seconds for each layer and level."""

from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from pvt_mm.apis.config import load_config
from tests.conftest import ROOT

SIZES = dict(embed_dims=(8, 16), depths=(1, 1), num_heads=(1, 2), mlp_ratios=(2, 2))
PVT = dict(type='pvt_mm.PVT', arch=dict(patch_sizes=(4, 2), sr_ratios=(3, 1), **SIZES), out_indices=(0, 1))
LINEAR = dict(
    type='pvt_mm.PVTv2', arch=dict(strides=(4, 2), sr_ratios=(1, 1), linear=True, **SIZES), out_indices=(0, 1)
)
SHAPES = dict(metainfo=dict(classes=('circle', 'square', 'triangle')))
RESIZE = dict(type='Resize', scale=(128, 96), keep_ratio=True)


def configure(name: str, backbone: dict = PVT, shapes: Path | None = None) -> Config:
    """Returns a shipped detector's config with two stages and levels and few channels, and ``shapes`` as its data."""
    options = {'data_root': f'{shapes}/'} if shapes else {}
    config = load_config(str(ROOT / f'configs/{name}.py'), options)
    model = config.model
    model.backbone, model.neck = dict(backbone), dict(type='FPN', in_channels=[8, 16], out_channels=32, num_outs=2)
    narrow = dict(num_classes=3, in_channels=32, feat_channels=32)
    if 'roi_head' in model:
        model.rpn_head.update(in_channels=32, feat_channels=32)
        model.rpn_head.anchor_generator.strides = [4, 8]
        heads = model.roi_head.bbox_head
        for head in heads if isinstance(heads, list) else [heads]:
            head.update(in_channels=32, fc_out_channels=32, num_classes=3)
        parts = ['bbox', 'mask'] if 'mask_head' in model.roi_head else ['bbox']
        for part in parts:
            model.roi_head[f'{part}_roi_extractor'].update(out_channels=32, featmap_strides=[4, 8])
        if 'mask_head' in model.roi_head:
            model.roi_head.mask_head.update(num_convs=1, in_channels=32, conv_out_channels=16, num_classes=3)
        model.test_cfg.rpn.update(nms_pre=60, max_per_img=40)
        model.test_cfg.rcnn.update(max_per_img=20)
    else:
        model.bbox_head.update(narrow, stacked_convs=1)
        if 'anchor_generator' in model.bbox_head:
            model.bbox_head.anchor_generator.strides = [4, 8]
        if 'strides' in model.bbox_head:
            model.bbox_head.update(strides=[4, 8], regress_ranges=((-1, 16), (16, 1e8)))
        model.test_cfg.update(nms_pre=100, max_per_img=30)
    if shapes:
        load, pack = dict(type='LoadImageFromFile'), config.test_dataloader.dataset.pipeline[-1]
        labels = dict(type='LoadAnnotations', with_bbox=True, with_mask='mask_head' in model.get('roi_head', {}))
        config.test_dataloader.update(num_workers=0, persistent_workers=False)
        config.test_dataloader.dataset.update(pipeline=[load, RESIZE, labels, pack], **SHAPES)
    return config


def build(config: Config) -> nn.Module:
    """Builds a detector whose scores differ and whose boxes are not all alike."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(config.model).eval()
    for name, part in model.named_modules():
        if 'head' in name and isinstance(part, (nn.Conv2d, nn.Linear, nn.ConvTranspose2d)):
            gain = (
                0.05 if name.endswith(('_cls', '_reg', 'conv_cls', 'conv_reg')) else 1.0
            )  # scores of 1 would be equal
            nn.init.normal_(part.weight, std=gain * (2 / part.weight[0].numel()) ** 0.5)
            nn.init.zeros_(part.bias) if part.bias is not None else None
    return model


def save(config: Config, model: nn.Module, folder: Path) -> list[str]:
    """Writes config and checkpoint; returns their paths."""
    config.dump(str(folder / 'config.py'))
    meta = dict(dataset_meta=SHAPES['metainfo'])
    torch.save(dict(state_dict=model.state_dict(), meta=meta), folder / 'epoch_1.pth')
    return [str(folder / 'config.py'), str(folder / 'epoch_1.pth')]
