"""MMCV's operators see the same maps in any memory format."""

import importlib

import pytest
import torch
from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack, RoIAlign, RoIAlignRotated

import pvt_mm.models  # which fixes them
from pvt_mm.models.contiguous_ops import FUNCTIONS

ROIS = torch.tensor([[0.0, 1, 2, 10, 9], [1, 3, 1, 9, 12]])
OPERATORS = {
    'roi_align': (RoIAlign(7, 1.0, 0), ROIS),
    'roi_align_rotated': (RoIAlignRotated(7, 1.0, 2), torch.tensor([[0.0, 5, 5, 4, 4, 0.3]])),
    'deform_conv': (DeformConv2dPack(8, 8, 3, padding=1),),
    'modulated_deform_conv': (ModulatedDeformConv2dPack(8, 8, 3, padding=1),),
}


@pytest.mark.parametrize('name', OPERATORS)
def test_channels_last_maps_are_read_as_what_they_are(name):
    operator, *rois = OPERATORS[name]
    for parameter in operator.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    contiguous = torch.randn(2, 8, 16, 16).requires_grad_()
    channels_last = contiguous.detach().to(memory_format=torch.channels_last).requires_grad_()
    outputs = [operator(maps, *rois) for maps in (contiguous, channels_last)]
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(contiguous.grad, channels_last.grad)


def test_each_operator_is_wrapped_once():
    pvt_mm.models.make_maps_contiguous()
    for module, name in FUNCTIONS.items():
        forward = getattr(importlib.import_module(f'mmcv.ops.{module}'), name).forward
        assert not hasattr(forward.__wrapped__, '__wrapped__')
