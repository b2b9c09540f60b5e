"""Masks with test-time augmentation, against predictions of the same detector without."""

import pytest
import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from mmengine.registry import MODELS, init_default_scope

from pvt_mm.apis.config import load_config
from pvt_mm.apis.flags import use_tta
from tests.conftest import ROOT, TINY_ARCH


@pytest.fixture
def model():
    """A small random Mask R-CNN whose boxes and masks differ; it pads images to multiples of 32."""
    config = load_config(str(ROOT / 'configs/mask_rcnn/pvt_t_1x.py'))
    config.model.backbone.update(arch=TINY_ARCH, init_cfg=None)
    config.model.neck.in_channels = list(TINY_ARCH['embed_dims'])
    config.model.test_cfg.rpn.max_per_img = 50
    config.model.test_cfg.rcnn.update(score_thr=-1.0, max_per_img=10)
    config.model.roi_head.bbox_head.fc_out_channels = 64
    config.tta_model.tta_cfg.max_per_img = 10
    for kind in ('bbox_head', 'mask_head'):
        config.model.roi_head[kind].num_classes = 3
    use_tta(config)
    init_default_scope('mmdet')
    model = MODELS.build(config.model).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(('fc_reg.weight', 'conv_logits.weight', 'fc_cls.weight', 'rpn_reg.weight')):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


SIZES = [(70, 130), (110, 50)]  # H x W of the two images


def a_view(images, scale=1, flip=None):
    """Returns a view of the images, scaled, then flipped, as the test pipeline packs them."""
    inputs, samples = [], []
    for image in images:
        view = F.interpolate(image[None].float(), scale_factor=scale, mode='bilinear')[0].to(torch.uint8)
        axes = dict(horizontal=(-1,), vertical=(-2,), diagonal=(-2, -1)).get(flip, ())
        inputs.append(view.flip(axes))
        meta = dict(img_shape=view.shape[1:], ori_shape=image.shape[1:], scale_factor=(scale, scale))
        samples.append(DetDataSample(metainfo=dict(**meta, flip=flip is not None, flip_direction=flip)))
    return dict(inputs=inputs, data_samples=samples)


def together(*views):
    return {key: [view[key] for view in views] for key in views[0]}


@pytest.fixture
def images():
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in SIZES]


@torch.no_grad()
def predict(model, view):
    return model.module.test_step(view)


@torch.no_grad()
def averaged(model, *views):
    return model.test_step(together(*views))


def flipped(boxes, size, flip):
    """Returns the boxes of a flipped image."""
    x1, y1, x2, y2 = boxes.unbind(1)
    if flip in ('horizontal', 'diagonal'):
        x1, x2 = size[1] - x2, size[1] - x1
    if flip in ('vertical', 'diagonal'):
        y1, y2 = size[0] - y2, size[0] - y1
    return torch.stack([x1, y1, x2, y2], 1)


def assert_same(ours, expected, flip=None):
    """Boxes of equal scores may be in another order, and masks differ by a pixel at the threshold."""
    for size, mine, other in zip(SIZES, ours, expected, strict=True):
        mine, other = mine.pred_instances, other.pred_instances
        assert len(mine) == len(other) > 0
        by_score = [found.scores.argsort(descending=True, stable=True) for found in (mine, other)]
        mine, other = mine[by_score[0]], other[by_score[1]]
        assert torch.allclose(mine.scores, other.scores, atol=1e-5)
        assert torch.allclose(mine.bboxes, flipped(other.bboxes, size, flip), atol=1e-3)
        axes = dict(horizontal=(-1,), vertical=(-2,), diagonal=(-2, -1)).get(flip, ())
        masks = other.masks.flip(axes)
        assert mine.masks.shape == masks.shape == (len(mine), *size)
        assert masks.any()
        assert (mine.masks != masks).float().mean() < 1e-3


def test_plain_views_are_the_plain_prediction(images, model):
    view = a_view(images)
    expected = predict(model, a_view(images))
    assert_same(averaged(model, view), expected)
    assert_same(averaged(model, a_view(images), a_view(images)), expected)


@pytest.mark.parametrize('flip', ['horizontal', 'vertical', 'diagonal'])
def test_a_flip_is_undone(flip, images, model):
    view = a_view(images, flip=flip)
    for sample in view['data_samples']:
        sample.set_metainfo(dict(flip=False))
    expected = predict(model, view)  # as if the view were the image
    assert_same(averaged(model, a_view(images, flip=flip)), expected, flip)


def test_a_scale_is_undone(images, model):
    assert_same(averaged(model, a_view(images, scale=2)), predict(model, a_view(images, scale=2)))


def test_masks_are_means_over_views(images, model):
    views = [a_view(images, scale, flip) for scale in (1, 2) for flip in (None, 'horizontal')]
    seen, given = [], []
    head = model.module.roi_head.mask_head
    head.register_forward_hook(lambda module, inputs, output: seen.append(output.sigmoid()))
    paste = head.predict_by_feat
    head.predict_by_feat = lambda logits, *args, **kwargs: given.append(logits) or paste(logits, *args, **kwargs)
    averaged(model, *views)
    upright = [masks.flip(-1) if i % 2 else masks for i, masks in enumerate(seen)]
    assert len(upright) == 4
    assert torch.allclose(torch.cat(given[0]).sigmoid(), sum(upright) / 4, atol=1e-5)


def test_images_without_boxes_have_no_masks(images, model):
    model.module.roi_head.test_cfg.score_thr = 1.1
    for size, result in zip(SIZES, averaged(model, a_view(images), a_view(images, flip='vertical')), strict=True):
        assert len(result.pred_instances) == 0
        assert result.pred_instances.masks.shape == (0, *size)


def test_another_detector_is_refused():
    config = load_config(str(ROOT / 'configs/retinanet/pvt_t_1x.py'))
    config.tta_model.type = 'pvt_mm.InstanceTTAModel'
    use_tta(config)
    init_default_scope('mmdet')
    with torch.device('meta'), pytest.raises(ValueError, match='is for a Mask R-CNN, not for a RetinaNet'):
        MODELS.build(config.model)
