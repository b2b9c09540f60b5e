"""The exportable modules of detectors agree with MMDetection, for batches of images of different sizes."""

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample

from pvt_mm.deploy.dense import OneStage
from pvt_mm.deploy.graphs import build_graph
from pvt_mm.deploy.two_stage import TwoStage
from pvt_mm.deploy.verify import Agreement
from pvt_mm.utils.errors import InputError
from tests.test_deploy.small import LINEAR, PVT, build, configure

pytest.importorskip('onnxscript')

SHAPES = [([[96, 128]], [[48, 64]]), ([[128, 160], [110, 150]], [[128, 160], [55, 90]])]
DETECTORS = {
    'retinanet/pvt_t_1x': (OneStage, PVT),
    'atss/pvt_v2_b2_3x_ms': (OneStage, LINEAR),
    'gfl/pvt_v2_b2_3x_ms': (OneStage, LINEAR),
    'heads/pvt_s_fcos_1x': (OneStage, PVT),
    'heads/pvt_s_faster_rcnn_1x': (TwoStage, PVT),
    'mask_rcnn/pvt_v2_b2_1x': (TwoStage, LINEAR),
    'cascade_mask_rcnn/pvt_v2_b2_3x_ms': (TwoStage, LINEAR),
}


def mmdets(model: torch.nn.Module, image: torch.Tensor, img_shapes: list, ori_shapes: list) -> list[dict]:
    """Returns MMDetection's predictions on a batch of normalised images."""
    samples = []
    for (h, w), (H, W) in zip(img_shapes, ori_shapes, strict=True):
        facts = dict(img_shape=(h, w), ori_shape=(H, W), scale_factor=(w / W, h / H))
        size = tuple(image.shape[2:])
        samples.append(DetDataSample(metainfo=dict(facts, batch_input_shape=size, pad_shape=size)))
    with torch.no_grad():
        found = [sample.pred_instances for sample in model.predict(image, samples)]
    names = dict(boxes='bboxes', scores='scores', labels='labels', masks='masks')
    return [{ours: one[theirs].numpy() for ours, theirs in names.items() if theirs in one} for one in found]


@pytest.mark.parametrize('name', DETECTORS)
def test_boxes_and_masks_are_mmdetections(name):
    kind, backbone = DETECTORS[name]
    model = build(configure(name, backbone))
    assert isinstance(build_graph(model), kind)
    check(model)


def check(model: torch.nn.Module, shapes: list = SHAPES) -> np.ndarray:
    """Compares a model with its exportable module; returns the scores of all objects."""
    graph, scores = build_graph(model), []
    for img_shapes, ori_shapes in shapes:
        height, width = img_shapes[0]
        image = torch.randn(len(img_shapes), 3, height, width)
        with torch.no_grad():
            outputs = graph(image, torch.tensor(img_shapes), torch.tensor(ori_shapes))
        found = dict(zip(graph.outputs, (x.numpy() for x in outputs), strict=True))
        agreement = Agreement()
        for i, expected in enumerate(mmdets(model, image, img_shapes, ori_shapes)):
            one = {key: values[i][found['labels'][i] >= 0] for key, values in found.items()}
            if 'masks' in one:
                one['masks'] = one['masks'][:, : ori_shapes[i][0], : ori_shapes[i][1]]
                assert one['masks'].any()
            assert len(one['scores']) == len(expected['scores']) > 5
            assert np.all(np.diff(one['scores']) <= 0)
            agreement.add(expected, one)
            scores.append(expected['scores'])
        assert (agreement.missing, agreement.extra) == (0, 0)
        assert agreement.box_px < 1e-3
        assert agreement.score < 1e-5
        assert agreement.mask_iou > 0.99
    return np.concatenate(scores)


def middle(scores: np.ndarray) -> float:
    """Returns a threshold in the widest gap of the scores in the middle."""
    half = np.sort(scores)[len(scores) // 4 : -len(scores) // 4]
    i = np.diff(half).argmax()
    return float(half[i : i + 2].mean())


@pytest.mark.parametrize('is_sigmoid', [True, False])
@pytest.mark.parametrize('changes', [dict(nms_pre=-1, min_bbox_size=9.37), dict(nms=dict(class_agnostic=True))])
def test_settings_of_one_stage_detectors(changes, is_sigmoid):
    config = configure('retinanet/pvt_t_1x', PVT)
    config.model.test_cfg.update(max_per_img=2000, score_thr=0.0)
    config.model.bbox_head.anchor_generator.strides = [(4, 4), (8, 4)]
    config.model.bbox_head.loss_cls.update(use_sigmoid=is_sigmoid)
    if not is_sigmoid:
        config.model.bbox_head.loss_cls = dict(type='CrossEntropyLoss', use_sigmoid=False)
    # MMCV suppresses more than 10,000 candidates class by class, with other roundings.
    small = [([[64, 64]], [[48, 96]]), ([[64, 64], [60, 44]], [[64, 64], [30, 90]])]
    every = check(build(config), small)
    config.model.test_cfg.update(changes)
    changed = check(build(config), small)
    config.model.test_cfg.score_thr = middle(changed)
    assert len(every) != len(changed) > len(check(build(config), small)) > 20


def test_score_threshold_and_levels_of_two_stage_detectors():
    config = configure('heads/pvt_s_faster_rcnn_1x', PVT)
    config.model.test_cfg.rpn.update(nms=dict(type='nms', iou_threshold=0.3), max_per_img=1000)
    config.model.test_cfg.rcnn.update(max_per_img=2000, score_thr=0.0)
    every = check(build(config))
    config.model.test_cfg.rcnn.score_thr = middle(every)
    assert len(every) > len(check(build(config))) > 20


def test_other_suppression_is_refused():
    config = configure('retinanet/pvt_t_1x')
    config.model.test_cfg.nms = dict(type='soft_nms', iou_threshold=0.5)
    shape = torch.tensor([[64, 64]])
    with pytest.raises(InputError, match=r'test_cfg.nms.type is soft_nms, .* set it to nms'):
        build_graph(build(config))(torch.zeros(1, 3, 64, 64), shape, shape)
