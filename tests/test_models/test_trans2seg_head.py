"""The Trans2Seg head: any input size, parts against independent implementations, and its largest tensor."""

import math

import pytest
import torch
import torch.nn.functional as F
from mmdet.models.layers import SinePositionalEncoding
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pvt_mm.models import PVTv2, Trans2SegHead
from pvt_mm.models.trans2seg_head import AttentionMaps, sine_positions
from tests.conftest import HALF_DTYPES, TINY_ARCH_V2

SMALL = dict(in_channels=(8, 16), channels=12, embed_dims=16, num_layers=2, num_heads=2, num_classes=5)


def maps(height, width, channels=(8, 16), batch=2, **kwargs):
    """Returns the maps of a backbone of strides 4 to 32; the head uses the first and the last."""
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


@pytest.mark.parametrize('size', [(64, 64), (97, 131)])
def test_maps_of_pvt_v2(size):
    """Their sides are rounded up: no stage's are half of the one's before."""
    backbone, head = PVTv2(TINY_ARCH_V2), Trans2SegHead(**{**SMALL, 'in_channels': (8, 32)})
    scores = head(backbone(torch.randn(2, 3, *size)))
    assert scores.shape == (2, 5, *(-(-side // 4) for side in size))
    scores.square().sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_every_parameter_has_a_gradient():
    head = Trans2SegHead(**SMALL, norm_cfg=dict(type='BN'))
    head.init_weights()
    head(maps(64, 96)).square().sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def attend(queries, tokens, weights, prefix, heads):
    """Returns the multi-head attention of one image, head by head: queries (K, C) over tokens (N, C)."""
    weight, bias = weights[f'{prefix}.in_proj_weight'], weights[f'{prefix}.in_proj_bias']
    q, k, v = (
        x @ weight[part].T + bias[part]
        for x, part in zip((queries, tokens, tokens), torch.arange(len(weight)).chunk(3), strict=True)
    )
    outputs = [
        (q_h @ k_h.T / q_h.shape[1] ** 0.5).softmax(1) @ v_h
        for q_h, k_h, v_h in zip(q.chunk(heads, 1), k.chunk(heads, 1), v.chunk(heads, 1), strict=True)
    ]
    return linear(torch.cat(outputs, 1), weights, f'{prefix}.out_proj')


def linear(x, weights, prefix):
    return x @ weights[f'{prefix}.weight'].T + weights.get(f'{prefix}.bias', 0)


def norm(x, weights, prefix):
    return F.layer_norm(x, x.shape[-1:], weights[f'{prefix}.weight'], weights[f'{prefix}.bias'])


def feed_forward(x, weights, prefix):
    return linear(F.gelu(linear(x, weights, f'{prefix}.linear1')), weights, f'{prefix}.linear2')


def by_hand(weights, low, high, layers=2, heads=2, channels=16):
    """Returns the class scores of one image, position by position, from the head's weights."""
    _, h, w = high.shape
    tokens = []
    for y in range(h):
        for x in range(w):
            waves = [
                wave(2 * math.pi * (i + 1) / size / 10000 ** (4 * c / channels))
                for i, size in ((y, h), (x, w))
                for wave in (math.sin, math.cos)
                for c in range(channels // 4)
            ]
            projected = weights['project.weight'][..., 0, 0] @ high[:, y, x] + weights['project.bias']
            tokens.append(projected + torch.tensor(waves))
    memory = torch.stack(tokens)
    for i in range(layers):
        p = f'encoder.layers.{i}'
        normed = norm(memory, weights, f'{p}.norm1')
        memory = memory + attend(normed, normed, weights, f'{p}.self_attn', heads)
        memory = memory + feed_forward(norm(memory, weights, f'{p}.norm2'), weights, p)
    memory = norm(memory, weights, 'encoder.norm')
    queries = weights['class_queries']
    for i in range(layers):
        p = f'decoder.layers.{i}'
        normed = norm(queries, weights, f'{p}.norm1')
        queries = queries + attend(normed, normed, weights, f'{p}.self_attn', heads)
        queries = queries + attend(norm(queries, weights, f'{p}.norm2'), memory, weights, f'{p}.multihead_attn', heads)
        queries = queries + feed_forward(norm(queries, weights, f'{p}.norm3'), weights, p)
    queries = norm(queries, weights, 'decoder.norm')
    q, k = linear(queries, weights, 'attention_maps.q'), linear(memory, weights, 'attention_maps.k')
    maps = [
        (q_h @ k_h.T / q_h.shape[1] ** 0.5).softmax(1) * h * w
        for q_h, k_h in zip(q.chunk(heads, 1), k.chunk(heads, 1), strict=True)
    ]
    attention = torch.cat(maps).reshape(-1, h, w)  # each head's classes

    def conv(x, name, **kwargs):
        return F.conv2d(x, weights[f'{name}.conv.weight'], weights[f'{name}.conv.bias'], **kwargs).relu()

    fused = conv(attention, 'fuse_attention') + conv(memory.T.reshape(-1, h, w), 'fuse_memory')
    fused = F.interpolate(fused[None], low.shape[1:], mode='bilinear', align_corners=False)[0]
    fused = conv(fused + conv(low, 'fuse_low'), 'fuse', padding=1)
    return F.conv2d(fused, weights['conv_seg.weight'], weights['conv_seg.bias'])


def test_the_forward_pass_equals_a_plain_implementation():
    head = Trans2SegHead(**SMALL).eval()
    head.init_weights()
    for parameter in head.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # biases other than 0, norms other than 1
    first, _, _, last = maps(64, 160)  # 2 x 5 tokens
    weights = {name: parameter.detach() for name, parameter in head.named_parameters()}
    expected = torch.stack([by_hand(weights, low, high) for low, high in zip(first, last, strict=True)])
    assert torch.allclose(head((first, None, None, last)), expected, rtol=1e-4, atol=1e-4)


def test_dropout_is_before_the_last_layer():
    head = Trans2SegHead(**SMALL, dropout=0.0, dropout_ratio=0.999)
    head.init_weights()
    scores = head(maps(64, 64))
    assert torch.equal(scores, head.conv_seg.bias[None, :, None, None].expand_as(scores))


def test_weights_are_xaviers():
    head = Trans2SegHead(in_channels=(64, 512), num_classes=150)
    head.init_weights()
    for name, parameter in head.named_parameters():
        if parameter.dim() > 1 and not name.startswith(('class_queries', 'conv_seg')):
            fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(parameter)
            assert parameter.std().item() == pytest.approx((2 / (fan_in + fan_out)) ** 0.5, rel=0.05), name
    assert head.class_queries.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize('dtype', HALF_DTYPES)
def test_half_precision(dtype):
    head = Trans2SegHead(**SMALL).to(dtype).eval()
    assert head(maps(64, 96, dtype=dtype)).dtype == dtype


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
        theirs.in_proj_bias[:16] = ours.q.bias
    queries, memory = torch.randn(2, 5, 16), torch.randn(2, 12, 16)
    weights = theirs(queries, memory, memory, average_attn_weights=False)[1]
    attention = ours(queries, memory)
    assert torch.allclose(attention, weights * 12, atol=1e-5)
    assert torch.allclose(attention.mean(3), torch.ones(2, 2, 5))  # uniform attention is 1 for any size


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation creates."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        created = function(*args, **(kwargs or {}))
        for tensor in created if isinstance(created, (tuple, list)) else [created]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return created


@pytest.mark.parametrize('classes', [19, 150, 600])
def test_no_tensor_is_larger_than_the_scores_or_a_stride_4_map(classes):
    with torch.device('meta'):
        head = Trans2SegHead(in_channels=(64, 512), num_classes=classes).eval()
        features = maps(512, 512, (64, 512))
    with LargestTensor() as seen:
        head(features)
    assert seen.largest == 2 * max(classes, 256) * 128 * 128
