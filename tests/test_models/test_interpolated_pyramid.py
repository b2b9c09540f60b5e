"""The pyramid interpolated from a backbone of one stride."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS

from pvt_mm.models import InterpolatedPyramid


def test_maps_are_resized_and_have_gradients():
    maps = [torch.rand(2, 3, 5, 7, requires_grad=True) for _ in range(4)]
    pyramid = InterpolatedPyramid((8, 4, 1, 0.5))
    outputs = pyramid(maps)
    assert [tuple(out.shape) for out in outputs] == [(2, 3, 40, 56), (2, 3, 20, 28), (2, 3, 5, 7), (2, 3, 2, 3)]
    assert torch.equal(outputs[2], maps[2])
    assert torch.equal(outputs[1], F.interpolate(maps[1], size=(20, 28), mode='bilinear', align_corners=False))
    sum(out.sum() for out in outputs).backward()
    assert all(x.grad.abs().sum() > 0 for x in maps)
    assert not list(pyramid.parameters())


def test_another_number_of_maps_is_refused():
    with pytest.raises(ValueError, match='argument 2 is longer'):
        MODELS.build(dict(type='pvt_mm.InterpolatedPyramid', scales=(1, 2)))([torch.rand(1, 1, 2, 2)])
