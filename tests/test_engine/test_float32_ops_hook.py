"""Detectors in bfloat16 with operators that refuse it, as mmcv's CUDA operators do.

Autocast on a CPU leaves more in bfloat16 than on CUDA, where softmax, exp, sums and upsampling are float32. What is
float32 here where an operator is called is so there.
"""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from mmcv import _ext
from mmcv.ops import DeformConv2dPack, RoIAlign
from mmdet.models.dense_heads import tood_head
from mmdet.models.losses import focal_loss as mmdets_focal_loss
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from pvt_mm.engine import Float32OpsHook
from pvt_mm.engine.hooks.float32_ops_hook import float32_ops
from tests.conftest import ROOT, TINY_ARCH_V2

BACKBONE = dict(_delete_=True, type='pvt_mm.PVTv2', arch=dict(TINY_ARCH_V2), drop_path_rate=0.0)
DETECTORS = {
    'RetinaNet': str(ROOT / 'configs/retinanet/pvt_s_1x.py'),
    'Mask R-CNN': str(ROOT / 'configs/mask_rcnn/pvt_s_1x.py'),
    'FCOS': 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'ATSS': 'mmdet::atss/atss_r50_fpn_1x_coco.py',
    'GFL': 'mmdet::gfl/gfl_r50_fpn_1x_coco.py',
    'Cascade R-CNN': 'mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py',
}
REFUSED = ('RetinaNet', 'Mask R-CNN', 'FCOS', 'ATSS', 'Cascade R-CNN')  # GFL calls none of mmcv's operators


def losses_of_pixels(scores: Tensor, labels: Tensor, gamma: float, alpha: float) -> Tensor:
    """Returns the focal loss (N, C) of logits (N, C), equation 5 of its paper."""
    is_class = F.one_hot(labels, scores.shape[1] + 1)[:, :-1].bool()
    p = torch.where(is_class, scores.sigmoid(), 1 - scores.sigmoid())
    return -torch.where(is_class, alpha, 1 - alpha) * (1 - p) ** gamma * p.log()


def focal_loss_forward(scores, labels, weight, out, gamma, alpha):
    out.copy_(losses_of_pixels(scores, labels, gamma, alpha))


def focal_loss_backward(scores, labels, weight, out, gamma, alpha):
    with torch.enable_grad():
        scores = scores.detach().requires_grad_()
        out.copy_(torch.autograd.grad(losses_of_pixels(scores, labels, gamma, alpha).sum(), scores)[0])


@pytest.fixture
def boxes(monkeypatch) -> list[Tensor]:
    """Makes mmcv's operators those of CUDA, and returns the boxes that RoIAlign gets."""
    boxes = []

    def refuse(name, function):
        def operator(*args, **kwargs):
            if any(isinstance(arg, Tensor) and arg.dtype == torch.bfloat16 for arg in args):
                raise RuntimeError(f'"{name}_impl" not implemented for \'BFloat16\'')
            return function(*args, **kwargs)

        monkeypatch.setattr(_ext, name, operator)

    def align(features, rois, *args, **kwargs):
        boxes.append(rois)
        return on_cpu(features, rois, *args, **kwargs)

    on_cpu = _ext.roi_align_forward
    refuse('sigmoid_focal_loss_forward', focal_loss_forward)
    refuse('sigmoid_focal_loss_backward', focal_loss_backward)
    refuse('roi_align_forward', align)
    refuse('roi_align_backward', _ext.roi_align_backward)

    def by_mmcv(scores, is_class, *args, **kwargs):
        """Takes the path of CUDA: MMDetection uses Python for tensors on a CPU, with one-hot labels."""
        labels = torch.where(is_class.any(1), is_class.int().argmax(1), scores.shape[1])
        return mmdets_focal_loss.sigmoid_focal_loss(scores, labels, *args, **kwargs)

    monkeypatch.setattr(mmdets_focal_loss, 'py_sigmoid_focal_loss', by_mmcv)
    return boxes


def detector(name: str, tmp_path) -> nn.Module:
    """Returns a narrow model of a config, with a tiny PVTv2."""

    def shrink(settings) -> None:
        for key, value in settings.items() if isinstance(settings, dict) else ():
            if key in ('in_channels', 'feat_channels', 'out_channels', 'conv_out_channels', 'fc_out_channels'):
                settings[key] = 32 if value in (256, 1024) else value
            elif key in ('max_per_img', 'num'):  # of proposals, and of those that are trained on
                settings[key] = 30
            for inner in value if isinstance(value, list) else [value]:
                shrink(inner)

    (tmp_path / 'tiny.py').write_text(
        f'_base_ = {DETECTORS[name]!r}\n'
        f'model = dict(backbone={BACKBONE!r}, neck=dict(in_channels={list(TINY_ARCH_V2["embed_dims"])!r}))\n'
    )
    model = Config.fromfile(tmp_path / 'tiny.py').model
    shrink(model)
    init_default_scope('mmdet')
    torch.manual_seed(0)
    return MODELS.build(model).train()


def losses_of(model: nn.Module, dtype: torch.dtype | None, steps: int = 1) -> list[float]:
    """Returns the losses of steps on two images with objects."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    torch.manual_seed(0)
    batch = demo_mm_inputs(2, [[3, 64, 96], [3, 64, 96]], num_items=[3, 2], num_classes=80, with_mask=True)
    losses = []
    for _ in range(steps):
        data = model.data_preprocessor(batch, True)
        with torch.autocast('cpu', dtype, enabled=dtype is not None):
            loss, _ = model.parse_losses(model(**data, mode='loss'))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert all(value.grad.isfinite().all() for value in model.parameters() if value.grad is not None)
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize('name', DETECTORS)
def test_detectors_train_in_bfloat16(name, boxes, tmp_path):
    model = detector(name, tmp_path)
    expected = losses_of(model, None)[0]
    model = detector(name, tmp_path)
    if name in REFUSED:
        with pytest.raises(RuntimeError, match='BFloat16'):
            losses_of(model, torch.bfloat16)
    hook, runner = Float32OpsHook(), SimpleNamespace(model=model)
    hook.before_train(runner)
    boxes.clear()
    losses = losses_of(model, torch.bfloat16, steps=2)
    assert losses[0] == pytest.approx(expected, rel=0.05)
    assert all(map(math.isfinite, losses))
    assert bool(boxes) == ('R-CNN' in name)
    if boxes:  # coordinates of more bits than bfloat16 has
        assert not torch.equal(boxes[0], boxes[0].bfloat16().float())
    hook.after_train(runner)
    if name in REFUSED:
        with pytest.raises(RuntimeError, match='BFloat16'):
            losses_of(model, torch.bfloat16)


def test_operators_return_bfloat16_and_losses_float32(boxes):
    features, rois = torch.randn(1, 3, 8, 8).bfloat16(), torch.tensor([[0, 1.3, 1.7, 6.1, 5.9]])
    scores, labels = torch.randn(8, 3).bfloat16(), torch.randint(4, (8,))
    align, focal_loss = RoIAlign(2, sampling_ratio=1), mmdets_focal_loss.FocalLoss()
    convolve = DeformConv2dPack(3, 4, 3, padding=1)  # computes offsets by a convolution, which autocast would cast
    with float32_ops(nn.ModuleList([align, focal_loss, convolve])), torch.autocast('cpu', torch.bfloat16):
        outputs = align(features, rois=rois), convolve(features), focal_loss(scores, labels)
    assert torch.equal(outputs[0], align(features.float(), rois).bfloat16())
    assert torch.equal(outputs[1], convolve(features.float()).bfloat16())
    assert torch.equal(outputs[2], focal_loss(scores.float(), labels))


def test_the_operator_that_toods_head_calls_as_a_function_gets_float32(monkeypatch):
    def deform_conv2d(features, offset, weight, *args):
        got.update([features.dtype, offset.dtype, weight.dtype])
        return features

    got = set()
    monkeypatch.setattr(tood_head, 'deform_conv2d', deform_conv2d)
    strides = dict(type='AnchorGenerator', ratios=[1.0], octave_base_scale=8, scales_per_octave=1, strides=[8])
    head = tood_head.TOODHead(2, 8, feat_channels=8, stacked_convs=1, norm_cfg=None, anchor_generator=strides)
    with float32_ops(head), torch.autocast('cpu', torch.bfloat16):
        scores, boxes = head([torch.randn(1, 8, 8, 8).bfloat16()])
    assert got == {scores[0].dtype, boxes[0].dtype} == {torch.float32}


def test_autocast_is_on_again_after_an_error():
    linear, align = model = nn.Sequential(nn.Linear(2, 2), RoIAlign(2))
    with float32_ops(model), torch.autocast('cpu', torch.bfloat16):
        with pytest.raises(AssertionError, match='RoI must be'):
            align(torch.zeros(1, 3, 8, 8), torch.zeros(1, 4))
        assert linear(torch.ones(2)).dtype == torch.bfloat16
