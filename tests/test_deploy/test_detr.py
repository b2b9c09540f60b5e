"""An exported DETR finds the boxes that MMDetection's does, in images of several sizes in a batch."""

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.registry import MODELS, init_default_scope

from pvt_mm.apis.config import load_config
from pvt_mm.deploy.detr import Detr
from tests.conftest import ROOT

onnxruntime = pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

ARCH = dict(
    embed_dims=(8, 16), depths=(1, 1), num_heads=(1, 2), patch_sizes=(4, 4), sr_ratios=(3, 1), mlp_ratios=(2, 2)
)
# The padded size, sizes without padding, original sizes. The maps' sides do not divide the last.
BATCHES = [
    ((64, 96), [(64, 96)], [(64, 96)]),
    ((128, 160), [(101, 160), (128, 90)], [(202, 320), (500, 349)]),
    ((101, 230), [(96, 230), (60, 224), (101, 97)], [(48, 115), (60, 224), (300, 290)]),
]


def build(use_sigmoid: bool) -> torch.nn.Module:
    config = load_config(str(ROOT / 'configs/detr/pvt_s_50e.py'))
    init_default_scope(config.default_scope)
    model = config.model
    model.backbone.update(arch=ARCH, out_indices=(1,), init_cfg=None)
    model.neck.in_channels = [16]
    model.encoder.num_layers = model.decoder.num_layers = 1
    model.bbox_head.num_classes = 4
    model.bbox_head.loss_cls = dict(type='FocalLoss' if use_sigmoid else 'CrossEntropyLoss', use_sigmoid=use_sigmoid)
    model.num_queries, model.test_cfg = 30, dict(max_per_img=20)
    torch.manual_seed(0)
    detr = MODELS.build(model).eval()
    detr.init_weights()
    for layer in (detr.bbox_head.fc_cls, detr.bbox_head.fc_reg):
        torch.nn.init.normal_(layer.weight, std=0.1)
    return detr


@pytest.fixture(scope='module', params=[False, True], ids=['softmax', 'sigmoid'])
def model(request) -> torch.nn.Module:
    return build(request.param)


def predict(model: torch.nn.Module, image: torch.Tensor, img_shapes: list, ori_shapes: list) -> list[np.ndarray]:
    samples = [
        DetDataSample(metainfo=dict(img_shape=new, ori_shape=old, scale_factor=(new[1] / old[1], new[0] / old[0])))
        for new, old in zip(img_shapes, ori_shapes, strict=True)
    ]
    for sample in samples:
        sample.set_metainfo(dict(batch_input_shape=tuple(image.shape[2:])))
    with torch.no_grad():
        found = [sample.pred_instances for sample in model.predict(image, samples)]
    return [torch.stack([one[name] for one in found]).numpy() for name in ('bboxes', 'scores', 'labels')]


def check(found: list[np.ndarray], expected: list[np.ndarray], pixels: float, scores: float) -> None:
    assert [one.dtype for one in found] == [np.float32, np.float32, np.int64]
    assert found[0].shape == (*found[1].shape, 4)
    assert found[1].shape[1] == 20
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=pixels)
    np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=scores)
    np.testing.assert_array_equal(found[2], expected[2])


def test_boxes_are_mmdets(model):
    assert Detr.fits(model)
    for size, img_shapes, ori_shapes in BATCHES:
        image = torch.randn(len(img_shapes), 3, *size)
        expected = predict(model, image, img_shapes, ori_shapes)
        assert np.ptp(expected[1]) > 0.05
        assert len(np.unique(expected[2])) > 1
        with torch.no_grad():
            found = Detr(model)(image, torch.tensor(img_shapes), torch.tensor(ori_shapes))
        check([one.numpy() for one in found], expected, pixels=1e-3, scores=1e-5)


def test_exported_boxes_agree_at_any_size_and_batch():
    from pvt_mm.deploy.to_onnx import to_onnx

    model = build(use_sigmoid=False)
    session = onnxruntime.InferenceSession(to_onnx(Detr(model), 3).SerializeToString())
    for size, img_shapes, ori_shapes in BATCHES:
        image = torch.randn(len(img_shapes), 3, *size)
        feeds = dict(image=image.numpy(), img_shape=np.array(img_shapes), ori_shape=np.array(ori_shapes))
        found = session.run(['boxes', 'scores', 'labels'], feeds)
        check(found, predict(model, image, img_shapes, ori_shapes), pixels=0.05, scores=1e-4)


def test_other_transformers_are_not_taken(model):
    class DeformableDETRHead(type(model.bbox_head)):
        pass

    other = torch.nn.Module()
    other.bbox_head = DeformableDETRHead.__new__(DeformableDETRHead)
    assert not Detr.fits(other)
