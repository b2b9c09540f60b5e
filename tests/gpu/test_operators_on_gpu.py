"""mmcv's operators on a device, and a detector made of them: the CPU's results."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS, DefaultScope

from tests.conftest import ROOT, TINY_ARCH
from tests.gpu.conftest import need, need_operators

DTYPES = {'float32': 1e-5, 'float16': 2e-2}  # and the errors that they may have


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Returns the norm of the difference as a share of the norm."""
    return ((found.detach().cpu().double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.fixture
def gpu(device):
    need_operators(device)
    if device == 'cpu':
        pytest.skip("not run: mmcv's operators on a CPU are what the GPU's are compared with")
    return device


@pytest.mark.full
@pytest.mark.parametrize('dtype', DTYPES)
def test_sigmoid_focal_loss(dtype, gpu, note):
    from mmcv.ops import sigmoid_focal_loss

    logits, labels = torch.randn(500, 20).to(getattr(torch, dtype)), torch.randint(21, (500,))
    expected, found = logits.float().requires_grad_(), logits.to(gpu).requires_grad_()
    losses = focal_loss(expected, labels), sigmoid_focal_loss(found, labels.to(gpu), 2.0, 0.25, None, 'sum')
    for loss in losses:
        loss.backward()
    check(note, f'sigmoid_focal_loss, {dtype}', dtype, losses[1], losses[0], found.grad, expected.grad)


def focal_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The sum of the sigmoid focal loss (Lin et al., 2017), gamma 2 and alpha 0.25; the last label is background."""
    is_class = F.one_hot(labels, logits.shape[1] + 1)[:, :-1] == 1
    p = torch.where(is_class, logits.sigmoid(), 1 - logits.sigmoid())
    return -(torch.where(is_class, 0.25, 0.75) * (1 - p) ** 2 * p.log()).sum()


def test_the_reference_of_the_focal_loss():
    need('mmdet')
    from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss

    logits, labels = torch.randn(50, 20), torch.randint(21, (50,))
    expected = py_sigmoid_focal_loss(logits, F.one_hot(labels, 21)[:, :-1], reduction='sum')
    assert focal_loss(logits, labels).item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.full
@pytest.mark.parametrize('dtype', DTYPES)
def test_roi_align(dtype, gpu, note):
    from mmcv.ops import roi_align

    corners = torch.rand(50, 2) * 40
    boxes = torch.cat([torch.zeros(50, 1), corners, corners + 4 + torch.rand(50, 2) * 20], dim=1)
    maps, boxes = (tensor.to(getattr(torch, dtype)) for tensor in (torch.randn(1, 16, 64, 64), boxes))
    expected, found = maps.float().requires_grad_(), maps.to(gpu).requires_grad_()
    outputs = [
        roi_align(of, rois, (7, 7), 1.0, 2, 'avg', True)
        for of, rois in ((expected, boxes.float()), (found, boxes.to(gpu)))
    ]
    weights = torch.randn(outputs[0].shape)
    for output in outputs:
        (output * weights.to(output)).sum().backward()
    check(note, f'roi_align, {dtype}', dtype, outputs[1], outputs[0], found.grad, expected.grad)


def check(note, name, dtype, output, expected, gradient, expected_gradient):
    errors = error(output, expected.detach()), error(gradient, expected_gradient)
    note(f'{name}: error of the output {errors[0]:.1e}, of the gradient {errors[1]:.1e}')
    assert max(errors) < DTYPES[dtype]


@pytest.mark.full
def test_nms(gpu):
    from mmcv.ops import batched_nms, nms

    corners = torch.rand(1000, 2) * 100
    boxes = torch.cat([corners, corners + 5 + torch.rand(1000, 2) * 40], dim=1)
    scores, classes = torch.rand(1000), torch.randint(5, (1000,))
    each, together = [], []
    for where in ('cpu', gpu):
        here = [tensor.to(where) for tensor in (boxes, scores, classes)]
        together.append(nms(*here[:2], 0.5)[1].tolist())
        each.append(batched_nms(*here, dict(type='nms', iou_threshold=0.5))[1].tolist())
    assert 10 < len(together[0]) < len(each[0]) < 1000
    assert together[1] == together[0]
    assert each[1] == each[0]


@pytest.mark.parametrize(('dtype', 'bounds'), [('float32', (1e-4, 1e-3)), ('bfloat16', (5e-2, 3e-1))])
def test_a_detectors_losses_and_gradients_are_those_of_the_cpu(dtype, bounds, device, note, monkeypatch):
    need('mmdet')
    need_operators(device)
    from mmdet.testing import demo_mm_inputs

    from pvt_mm.apis.config import load_config
    from pvt_mm.engine.hooks.float32_ops_hook import float32_ops

    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    config = load_config(str(ROOT / 'configs/demo/retinanet_shapes.py'), None).model
    if device == 'cpu':
        config.backbone.arch, config.neck.in_channels = TINY_ARCH, list(TINY_ARCH['embed_dims'])
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(config).train()
    image, size = torch.randn(2, 3, 128, 160), (128, 160)
    samples = demo_mm_inputs(2, [(3, *size)] * 2, [4, 4], num_classes=3)['data_samples']
    for sample in samples:
        sample.set_metainfo(dict(batch_input_shape=size, pad_shape=size))
    losses, gradients = [], []
    for where, as_dtype in (('cpu', 'float32'), (device, dtype)):
        trained = copy.deepcopy(model).to(where)
        with float32_ops(trained), torch.autocast(where, dtype=torch.bfloat16, enabled=as_dtype == 'bfloat16'):
            found = trained(image.to(where), [sample.to(where) for sample in samples], mode='loss')
        loss, parts = trained.parse_losses(found)
        loss.backward()
        losses.append(torch.stack([part.detach().cpu() for part in parts.values()]))
        gradients.append(torch.cat([parameter.grad.cpu().flatten() for parameter in trained.parameters()]))
    errors = error(losses[1], losses[0]), error(gradients[1], gradients[0])
    note(f'RetinaNet, {dtype}: error of the losses {errors[0]:.1e}, of the gradients {errors[1]:.1e}')
    assert errors[0] < bounds[0]
    assert errors[1] < bounds[1]
