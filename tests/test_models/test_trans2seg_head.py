"""The Trans2Seg head: any size, its parts against independent ones, and no map for each class and channel."""

import pytest
import torch
from mmdet.models.layers import SinePositionalEncoding
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pvt_mm.models import Trans2SegHead
from pvt_mm.models.trans2seg_head import AttentionMaps, sine_positions

SMALL = dict(in_channels=(8, 16), channels=12, embed_dims=16, num_layers=2, num_heads=2, num_classes=5)


def maps(height, width, channels=(8, 16), batch=2, **kwargs):
    """What a backbone of strides 4 to 32 returns for an image; only the first and the last are looked at."""
    low, high = channels
    first = torch.rand(batch, low, height // 4, width // 4, **kwargs)
    last = torch.rand(batch, high, height // 32, width // 32, **kwargs)
    return first, None, None, last


@pytest.mark.parametrize('size', [(64, 64), (32, 160), (97, 131), (160, 32)])
def test_any_size(size):
    head = Trans2SegHead(**SMALL)
    head.init_weights()
    scores = head(maps(*size))
    assert scores.shape == (2, 5, size[0] // 4, size[1] // 4)
    assert scores.isfinite().all()


def test_every_parameter_learns():
    head = Trans2SegHead(**SMALL, norm_cfg=dict(type='BN'))
    head.init_weights()
    head(maps(64, 96)).square().sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        if name != 'attention_maps.k.bias':  # the same for every token: softmax takes it out
            assert parameter.grad.abs().sum() > 0, name


def test_positions_are_detrs():
    h, w, channels = 3, 5, 32
    theirs = SinePositionalEncoding(channels // 2, normalize=True)(torch.zeros(1, h, w))[0]  # (C, h, w)
    theirs = theirs.reshape(2, channels // 4, 2, h * w).transpose(1, 2).reshape(channels, h * w)  # sines, then cosines
    ours = sine_positions(h, w, channels, torch.device('cpu'))[0]
    assert torch.allclose(ours, theirs.T, atol=1e-5)


def test_attention_maps_are_attentions_weights():
    ours, theirs = AttentionMaps(16, 2), nn.MultiheadAttention(16, 2, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight[:32] = torch.cat([ours.q.weight, ours.k.weight])
        theirs.in_proj_bias[:32] = torch.cat([ours.q.bias, ours.k.bias])
    queries, memory = torch.randn(2, 5, 16), torch.randn(2, 12, 16)
    weights = theirs(queries, memory, memory, average_attn_weights=False)[1]
    attention = ours(queries, memory)
    assert torch.allclose(attention, weights * 12, atol=1e-5)
    assert torch.allclose(attention.mean(3), torch.ones(2, 2, 5))  # 1 is even attention, whatever the size


class LargestTensor(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return made


@pytest.mark.parametrize('classes', [19, 150, 600])
def test_no_tensor_is_larger_than_the_scores_or_a_stride_4_map(classes):
    with torch.device('meta'):
        head = Trans2SegHead(in_channels=(64, 512), num_classes=classes).eval()
        features = maps(512, 512, (64, 512))
    with LargestTensor() as seen:
        head(features)
    assert seen.largest == 2 * max(classes, 256) * 128 * 128
