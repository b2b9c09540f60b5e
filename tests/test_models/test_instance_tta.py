"""Masks under test-time augmentation, against the plain predictions of the same detector."""

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from pvt_mm.engine.run import load_config, use_tta
from tests.conftest import ROOT, TINY_ARCH
from tests.test_configs import on_shapes

WHERE = ('bboxes', 'scores', 'labels', 'masks')


@pytest.fixture
def config(shapes, tmp_path):
    config = on_shapes(load_config(str(ROOT / 'configs/mask_rcnn/pvt_t_1x.py')), shapes, tmp_path)
    config.model.backbone.arch = {'_delete_': True, **TINY_ARCH}
    config.model.backbone.arch.pop('_delete_')
    config.model.neck.in_channels = list(TINY_ARCH['embed_dims'])
    config.model.data_preprocessor.pad_size_divisor = 1
    config.model.test_cfg.rpn.max_per_img = 50
    use_tta(config)
    init_default_scope('mmdet')
    return config


@pytest.fixture
def model(config):
    """Random, with boxes and masks that are not all the same."""
    model = MODELS.build(config.model).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(('fc_reg.weight', 'conv_logits.weight', 'fc_cls.weight', 'rpn_reg.weight')):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def views_of(config, model, scales=(64,), flips=(0.0,)):
    """A batch of two images in each view, as the test's data loader gives it."""
    loader = config.test_dataloader
    resizes, flipping = loader.dataset.pipeline[1].transforms[:2]
    resizes[:] = [dict(type='Resize', scale=(scale, scale), keep_ratio=True) for scale in scales]
    flipping[:] = [dict(type='RandomFlip', prob=flip) for flip in flips]
    return next(iter(Runner.build_dataloader(loader)))


@torch.no_grad()
def plain(model, data, view=0):
    return model.module.test_step({key: values[view] for key, values in data.items()})


@torch.no_grad()
def averaged(model, data):
    return model.test_step(data)


def assert_same(ours, expected, mirrored=False):
    """The boxes may have another order where scores are equal, and masks a pixel at a border of the threshold."""
    for mine, other in zip(ours, expected, strict=True):
        mine, other = mine.pred_instances, other.pred_instances
        assert len(mine) == len(other) > 0
        by_score = [found.scores.argsort(descending=True, stable=True) for found in (mine, other)]
        mine, other = mine[by_score[0]], other[by_score[1]]
        assert torch.allclose(mine.scores, other.scores, atol=1e-5)
        boxes = other.bboxes
        if mirrored:
            boxes = boxes[:, [2, 1, 0, 3]] * boxes.new_tensor([-1, 1, -1, 1]) + boxes.new_tensor([64, 0, 64, 0])
        assert torch.allclose(mine.bboxes, boxes, atol=1e-3)
        masks = other.masks.flip(-1) if mirrored else other.masks
        assert mine.masks.shape == masks.shape
        assert masks.any()
        assert (mine.masks != masks).float().mean() < 1e-3


def test_one_plain_view_is_the_plain_prediction(config, model):
    data = views_of(config, model)
    assert_same(averaged(model, data), plain(model, data))


def test_the_same_view_twice_is_the_plain_prediction(config, model):
    data = views_of(config, model, scales=(64, 64))
    assert_same(averaged(model, data), plain(model, data))


def test_a_flipped_view_comes_back_upright(config, model):
    data = views_of(config, model, flips=(1.0,))
    assert all(sample.flip for sample in data['data_samples'][0])
    assert_same(averaged(model, data), plain(model, data), mirrored=True)


def test_a_scaled_view_comes_back_at_the_original_size(config, model):
    data = views_of(config, model, scales=(128,))
    assert data['inputs'][0][0].shape == (3, 128, 128)
    results = averaged(model, data)
    assert_same(results, plain(model, data))
    for result in results:
        assert result.pred_instances.masks.shape[1:] == result.ori_shape == (64, 64)
        assert result.pred_instances.bboxes.max() <= 64


def test_masks_are_means_over_views(config, model):
    data = views_of(config, model, scales=(64, 128), flips=(0.0, 1.0))
    assert len(data['inputs']) == 4
    results = averaged(model, data)
    masks = []

    def keep(module, inputs, output):
        masks.append(output.sigmoid())

    model.module.roi_head.mask_head.register_forward_hook(keep)
    pasted = model.module.roi_head.mask_head.predict_by_feat
    given = []
    model.module.roi_head.mask_head.predict_by_feat = lambda logits, *args, **kwargs: (
        given.append(torch.cat(logits).sigmoid()) or pasted(logits, *args, **kwargs)
    )
    again = averaged(model, data)
    flips = [samples[0].flip for samples in data['data_samples']]
    views = [mask.flip(-1) if flip else mask for mask, flip in zip(masks, flips, strict=True)]
    assert torch.allclose(given[0], sum(views) / 4, atol=1e-5)
    assert_same(again, results)


def test_images_without_boxes_have_no_masks(config, model):
    model.module.roi_head.test_cfg.score_thr = 1.1
    for result in averaged(model, views_of(config, model, flips=(0.0, 1.0))):
        assert len(result.pred_instances) == 0
        assert result.pred_instances.masks.shape == (0, 64, 64)
