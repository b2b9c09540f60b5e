"""configs/heads: MMDetection's and MMSegmentation's heads on both versions of PVT are trained two steps and tested."""

import pytest

from pvt_mm.apis.config import load_config
from pvt_mm.models import ARCHS
from tests.conftest import ROOT
from tests.test_configs import WEIGHTS, on_shapes, read, stems, train, values_of

HEADS = dict(
    pvt_s_atss_1x='ATSSHead',
    pvt_s_cascade_rcnn_1x='CascadeRoIHead',
    pvt_s_faster_rcnn_1x='StandardRoIHead',
    pvt_s_fcos_1x='FCOSHead',
    pvt_s_segformer_80k='SegformerHead',
    pvt_s_upernet_80k='UPerHead',
)


def test_every_head_is_listed():
    assert set(stems('heads')) == set(HEADS)
    readme = (ROOT / 'configs/heads/README.md').read_text()
    for stem in HEADS:
        assert f'[{stem}]({stem}.py)' in readme


@pytest.mark.parametrize('stem', HEADS)
def test_recipe_is_pvts(stem):
    config = read(f'heads/{stem}')
    assert HEADS[stem] in set(values_of(config.model, 'type'))
    assert config.model.backbone == dict(
        type='pvt_mm.PVT', arch='small', init_cfg=dict(type='Pretrained', checkpoint=WEIGHTS.format('small'))
    )
    widths = list(ARCHS['small'].embed_dims)
    assert widths in (
        (config.model.neck or {}).get('in_channels'),
        config.model.get('decode_head', {}).get('in_channels'),
    )
    images = config.model.data_preprocessor
    assert images.bgr_to_rgb
    assert (images.mean, images.std) == ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    assert config.optim_wrapper == dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-4, weight_decay=1e-4))
    code = [line for line in (ROOT / f'configs/heads/{stem}.py').read_text().splitlines() if line[:1] != '#']
    assert len(code) <= 10


# tests/test_configs.py trains the last two with PVT, and ATSS, Cascade and Mask R-CNN with PVTv2.
TRAINED = [(f'heads/{stem}', 'PVT') for stem in HEADS]
TRAINED += [(f'heads/pvt_s_{head}', 'PVTv2') for head in ('fcos_1x', 'segformer_80k', 'upernet_80k')]
TRAINED += [('detr/pvt_s_50e', 'PVTv2'), ('trans2seg/pvt_s_40k', 'PVTv2')]


@pytest.mark.parametrize(('name', 'backbone'), TRAINED)
def test_head_trains_two_steps_and_tests(name, backbone, shapes, tmp_path):
    config = load_config(str(ROOT / f'configs/{name}.py'))
    config.model.backbone.type = f'pvt_mm.{backbone}'
    config.model.backbone.arch = dict(PVT='small', PVTv2='b2')[backbone]
    runner, gradients = train(on_shapes(config, shapes, tmp_path))
    assert max(gradient for key, gradient in gradients.items() if 'backbone' in key) > 0
    metrics = runner.test()
    assert ('mIoU' if config.default_scope == 'mmseg' else 'coco/bbox_mAP') in metrics
