"""configs/heads: MMDetection's and MMSegmentation's heads on a small PVT are trained for two steps and tested."""

import math

import pytest
from mmengine.runner import Runner

from pvt_mm.apis.config import as_list, load_config
from pvt_mm.models import ARCHS, PVT
from tests.conftest import ROOT, TINY_ARCH
from tests.test_configs import WEIGHTS, on_shapes, read, stems, values_of

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


@pytest.mark.parametrize('stem', HEADS)
def test_head_trains_two_steps_and_tests(stem, shapes, tmp_path):
    config = on_shapes(load_config(str(ROOT / f'configs/heads/{stem}.py')), shapes, tmp_path)
    config.model.backbone.arch = TINY_ARCH
    if config.model.neck:
        config.model.neck.in_channels = list(TINY_ARCH['embed_dims'])
    else:
        config.model.decode_head.update(in_channels=list(TINY_ARCH['embed_dims']), channels=16)
    if 'auxiliary_head' in config.model:
        config.model.auxiliary_head.update(in_channels=TINY_ARCH['embed_dims'][2], channels=16)
    if config.model.neck:
        config.model.neck.out_channels = 32
    for head in (config.model.get('bbox_head'), config.model.get('rpn_head')):
        if head:
            head.update(in_channels=32, feat_channels=32)
    if config.model.get('bbox_head'):
        config.model.bbox_head.stacked_convs = 1
    if 'roi_head' in config.model:
        config.model.roi_head.bbox_roi_extractor.out_channels = 32
        for head in as_list(config.model.roi_head.bbox_head):
            head.update(in_channels=32, fc_out_channels=16)
        config.model.train_cfg.rpn_proposal.max_per_img = config.model.test_cfg.rpn.max_per_img = 50
    runner = Runner.from_cfg(config)
    assert isinstance(runner.model.backbone, PVT)
    gradients = {}
    for key, parameter in runner.model.named_parameters():
        parameter.register_hook(lambda grad, key=key: gradients.update({key: grad.abs().sum().item()}))
    runner.train()
    assert set(gradients) == {key for key, _ in runner.model.named_parameters()}
    assert all(map(math.isfinite, gradients.values()))
    assert max(gradient for key, gradient in gradients.items() if 'backbone' in key) > 0
    metrics = runner.test()
    assert ('mIoU' if config.default_scope == 'mmseg' else 'coco/bbox_mAP') in metrics
