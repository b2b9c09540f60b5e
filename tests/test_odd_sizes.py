"""PVTv2 rounds its grids up, so that no level is half of the one before: what follows it takes images of any size."""

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from torch import nn

from pvt_mm.apis.config import load_config
from tests.conftest import ROOT, TINY_ARCH_LINEAR, TINY_ARCH_V2

SIZE = H, W = 77, 109  # maps of 20 x 28, 10 x 14, 5 x 7 and 3 x 4; each is one row and column less, rounded down
WIDTHS = TINY_ARCH_V2['embed_dims']
MODELS_OF_MAPS = {
    'mask_rcnn/pvt_s_1x': TINY_ARCH_LINEAR,
    'semantic_fpn/pvt_s_80k': TINY_ARCH_V2,
    'trans2seg/pvt_s_40k': TINY_ARCH_LINEAR,
    'heads/pvt_s_segformer_80k': TINY_ARCH_V2,
    'heads/pvt_s_upernet_80k': TINY_ARCH_LINEAR,
}


def narrow(config: object) -> None:
    """Divides the widths of all layers by 8."""
    if isinstance(config, dict):
        for key, value in config.items():
            if key.endswith(('channels', 'embed_dims', 'num_feats')):
                sides = value if isinstance(value, (list, tuple)) else [value]
                config[key] = type(value)(x // 8 for x in sides) if sides is value else value // 8
    for part in config.values() if isinstance(config, dict) else config if isinstance(config, (list, tuple)) else ():
        narrow(part)


def build(name: str, arch: dict) -> nn.Module:
    config = load_config(str(ROOT / f'configs/{name}.py'))
    model = config.model
    stages = model.backbone.get('out_indices', range(4))
    narrow(model)
    model.backbone = dict(type='pvt_mm.PVTv2', arch=arch, out_indices=tuple(stages))
    if model.get('neck'):
        model.neck.in_channels = [WIDTHS[i] for i in stages]
    else:
        model.decode_head.in_channels = [
            WIDTHS[i] for i in ((0, 3) if 'Trans2Seg' in model.decode_head.type else stages)
        ]
    if model.get('auxiliary_head'):
        model.auxiliary_head.in_channels = WIDTHS[model.auxiliary_head.in_index]
    if model.get('test_cfg'):
        model.test_cfg.get('rcnn', model.test_cfg).update(score_thr=0.0, max_per_img=5)
    if 'roi_head' in model:
        model.train_cfg.rpn_proposal.max_per_img = model.test_cfg.rpn.max_per_img = 20
    with DefaultScope.overwrite_default_scope(config.default_scope):
        return revert_sync_batchnorm(MODELS.build(model))


def sample(is_segmentor: bool) -> DetDataSample | SegDataSample:
    meta = dict(img_shape=SIZE, pad_shape=SIZE, batch_input_shape=SIZE, ori_shape=SIZE, scale_factor=(1, 1))
    if is_segmentor:
        labels = PixelData(data=torch.randint(0, 9, (1, *SIZE)))
        return SegDataSample(metainfo={**meta, 'padding_size': [0] * 4}, gt_sem_seg=labels)
    boxes = torch.tensor([[4.0, 8.0, 40.0, 50.0], [60.0, 30.0, W, H]])
    masks = BitmapMasks(np.ones((2, *SIZE), np.uint8), *SIZE)
    return DetDataSample(
        metainfo=meta, gt_instances=InstanceData(bboxes=boxes, labels=torch.tensor([0, 1]), masks=masks)
    )


@pytest.mark.parametrize('name', MODELS_OF_MAPS)
def test_a_model_trains_and_predicts(name):
    model, images = build(name, MODELS_OF_MAPS[name]), torch.randn(2, 3, *SIZE)
    is_segmentor = hasattr(model, 'decode_head')
    samples = [sample(is_segmentor) for _ in images]
    loss, _ = model.parse_losses(model.train().loss(images, samples))
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.backbone.parameters())
    with torch.no_grad():
        for found in model.eval().predict(images, samples):
            if is_segmentor:
                assert found.pred_sem_seg.shape == SIZE
            else:
                boxes = found.pred_instances.bboxes
                assert len(boxes)
                assert boxes.min() >= 0
                assert (boxes <= torch.tensor([W, H, W, H])).all()
