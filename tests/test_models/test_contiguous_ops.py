"""MMCV's operators see the same tensors in any memory format."""

import sys

import pytest
import torch
from mmcv import ops
from torch import nn

import pvt_mm.models  # noqa: F401 - which fixes them
from pvt_mm.models.contiguous_ops import make_operators_contiguous, operators

BOXES = torch.tensor([[0.0, 1, 2, 10, 9], [1, 3, 1, 9, 12]])
ROTATED = torch.tensor([[0.0, 5, 5, 4, 4, 0.3], [1, 8, 8, 9, 5, 1.0]])
CURVES = torch.tensor([[0.0, *range(1, 17)], [1, *range(16, 0, -1)]])
ON_CPU = {
    'roi_align': (ops.RoIAlign(4, 1.0, 0), BOXES),
    'roi_align_rotated': (ops.RoIAlignRotated(4, 1.0, 2), ROTATED),
    'deform_conv': (ops.DeformConv2dPack(8, 8, 3, padding=1),),
    'modulated_deform_conv': (ops.ModulatedDeformConv2dPack(8, 8, 3, padding=1),),
    'bezier_align': (ops.BezierAlign((4, 4), 1.0, 2), CURVES),
    'rotated_feature_align': (ops.rotated_feature_align, torch.rand(2, 16, 16, 5) * 6, 1.0, 1),
    'psa_mask': (lambda maps: ops.PSAMask('collect', (2, 4))(maps),),
}
# Those of which MMCV has a kernel for GPUs only.
ON_GPU = {
    'roi_pool': lambda maps, _: ops.roi_pool(maps, BOXES, (4, 4), 1.0),
    'prroi_pool': lambda maps, _: ops.PrRoIPool((4, 4), 1.0)(maps, BOXES),
    'deform_roi_pool': lambda maps, _: ops.DeformRoIPool(4, 1.0)(maps, BOXES, torch.zeros(2, 2, 4, 4)),
    'riroi_align_rotated': lambda maps, _: ops.RiRoIAlignRotated((4, 4), 1.0, 2, 8)(maps, ROTATED),
    'carafe': lambda maps, masks: ops.carafe(maps, masks, 3, 1, 1),
    'carafe_naive': lambda maps, masks: ops.carafe_naive(maps, masks, 3, 1, 1),
    'border_align': lambda maps, _: ops.BorderAlign(2)(maps, torch.rand(2, 256, 4)),
    'masked_conv': lambda maps, _: ops.MaskedConv2d(8, 4, 3, padding=1)(maps[:1], torch.ones(1, 16, 16)),
}
FORWARD_ONLY = ('carafe_naive', 'masked_conv')  # their backward passes want a GPU, or need nothing


def channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


@pytest.mark.parametrize('name', ON_CPU)
def test_values_and_gradients_are_those_of_contiguous_maps(name):
    operator, *rest = ON_CPU[name]
    for parameter in operator.parameters() if isinstance(operator, nn.Module) else ():
        nn.init.normal_(parameter, std=0.1)
    maps = torch.randn(2, 8, 16, 16).requires_grad_()
    others = channels_last(maps).requires_grad_()
    expected, found = operator(maps, *rest), operator(others, *rest)
    torch.testing.assert_close(found, expected)
    gradient = torch.randn_like(expected)
    expected.backward(gradient)
    found.backward(channels_last(gradient))
    torch.testing.assert_close(others.grad, maps.grad)
    assert maps.grad.abs().max() > 0


@pytest.mark.parametrize('name', ON_GPU)
def test_kernels_for_gpus_get_contiguous_tensors(name, monkeypatch):
    calls = {}

    class Kernels:
        def __getattr__(self, kernel):
            return lambda *values, **_: calls.update({kernel: [value.is_contiguous() for value in values]})

    monkeypatch.setattr(sys.modules[f'mmcv.ops.{name.removesuffix("_naive")}'], 'ext_module', Kernels())
    maps, masks = torch.randn(2, 8, 16, 16), torch.rand(2, 9, 16, 16)
    maps, masks = (channels_last(one).requires_grad_() for one in (maps, masks))
    output = ON_GPU[name](maps, masks)
    if name not in FORWARD_ONLY:
        output.backward(channels_last(torch.randn_like(output)))
        assert any(kernel.endswith('_backward') for kernel in calls)
    assert calls
    assert all(all(contiguous) for contiguous in calls.values())


def test_every_operator_is_wrapped_once_and_exported_as_before():
    make_operators_contiguous()
    found = {function.__name__: function for function in operators()}
    assert len(found) > 40
    for function in found.values():
        for name in {'forward', 'backward'} & set(vars(function)):
            method = getattr(function, name)
            assert method.takes_any_format
            assert not hasattr(method.__wrapped__, 'takes_any_format')
    assert found['RoIAlignFunction'].symbolic.__module__ == 'mmcv.ops.roi_align'


def test_models_with_them_compile():
    align = ops.RoIAlign(4, 1.0, 0)
    maps = channels_last(torch.randn(2, 8, 16, 16))
    torch.testing.assert_close(torch.compile(align, backend='eager')(maps, BOXES), align(maps.contiguous(), BOXES))
