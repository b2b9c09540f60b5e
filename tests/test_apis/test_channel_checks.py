"""Necks and heads that take other channels than the backbone's stages have."""

from types import SimpleNamespace

import pytest
from mmengine.registry import DefaultScope

from pvt_mm.apis.channel_checks import check_widths
from pvt_mm.apis.config import load_config
from pvt_mm.apis.inference import load_model
from pvt_mm.apis.launch import build_model
from pvt_mm.apis.weight_checks import check_tested_checkpoint
from pvt_mm.utils.errors import InputError
from tests.conftest import ROOT

OF_B0, OF_B2 = [32, 64, 160, 256], [64, 128, 320, 512]


def model_of(widths, out_indices=(0, 1, 2, 3)):
    return SimpleNamespace(backbone=SimpleNamespace(arch=SimpleNamespace(embed_dims=widths), out_indices=out_indices))


def test_a_neck_of_another_backbone_is_told_before_weights_are_read():
    config = load_config(str(ROOT / 'configs/retinanet/pvt_v2_b0_1x.py'), {'model.neck.in_channels': OF_B2})
    config.model.backbone.init_cfg = None
    message = (
        r"^model.neck.in_channels is \[64, 128, 320, 512\], and the backbone's stages have 32, 64, 160 and 256 "
        r'channels: set model.neck.in_channels=\[32, 64, 160, 256\]$'
    )
    with DefaultScope.overwrite_default_scope('mmdet'):
        for build in (
            build_model,
            lambda it: load_model(it, 'gone.pth'),
            lambda it: check_tested_checkpoint(it, 'gone'),
        ):
            with pytest.raises(InputError, match=message):
                build(config)


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        (dict(head=dict(in_channels=512)), r'model.head.in_channels is 512, .*: set model.head.in_channels=256$'),
        (
            dict(decode_head=dict(in_channels=OF_B2, in_index=[0, 1, 2, 3])),
            r'set model.decode_head.in_channels=\[32, 6',
        ),
        (dict(auxiliary_head=dict(in_channels=320, in_index=2)), 'set model.auxiliary_head.in_channels=160$'),
        (dict(auxiliary_head=dict(in_channels=320, in_index=4)), '^model.auxiliary_head.in_index=4: IndexError'),
    ],
)
def test_heads_without_a_neck(model, message):
    with pytest.raises(InputError, match=message):
        check_widths(model, model_of(OF_B0))
    check_widths(dict(model, neck=dict(in_channels=OF_B0)), model_of(OF_B0))


@pytest.mark.parametrize(
    'model',
    [
        dict(neck=dict(in_channels=OF_B2[1:])),
        dict(neck=dict(in_channels=2048)),
        dict(neck=dict(in_channels=[1, 2])),  # not one for each map
        dict(bbox_head=dict(in_channels=256)),
        dict(decode_head=[dict(in_channels=1)]),
        dict(decode_head=dict(in_channels=[320], in_index=[1])),
    ],
)
def test_what_fits_or_is_unknown_passes(model):
    check_widths(model, model_of(OF_B2, (1, 2, 3)))
    check_widths(dict(neck=dict(in_channels=OF_B0)), SimpleNamespace(backbone=SimpleNamespace(arch='r50')))
    check_widths(dict(neck=dict(in_channels=OF_B0)), SimpleNamespace())
