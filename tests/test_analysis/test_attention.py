"""The attention of a query is that of the layer, over the right pixels of the image."""

import copy
import functools

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from mmengine.registry import MODELS, DefaultScope

from pvt_mm.analysis.attention import (
    Attention,
    View,
    attend,
    attention_of,
    choose_heads,
    find_layer,
    grid_of,
    panels,
    plot_attention,
    shares_of,
    view,
)
from pvt_mm.apis.config import load_config
from pvt_mm.models import PVT, PVTv2
from pvt_mm.models.pvt import SRA, to_map
from pvt_mm.models.pvt_v2 import LinearSRA
from pvt_mm.utils.errors import InputError
from tests.conftest import ROOT, TINY_ARCH, TINY_ARCH_LINEAR, TINY_ARCH_V2

LAYERS = [(0, 0), (1, 0), (1, 1), (2, 0), (3, 0)]
CONFIGS = {
    'detector': ('demo/retinanet_shapes', {'model.neck.in_channels': [8, 16, 24, 32]}),
    'classifier': (
        'classification/pvt_t_300e',
        {'model.head.in_channels': 32, 'model.data_preprocessor.rand_augment': None},
    ),
}
BACKBONES = {'v1': (PVT, TINY_ARCH), 'v2': (PVTv2, TINY_ARCH_V2), 'linear': (PVTv2, TINY_ARCH_LINEAR)}


@functools.cache
def build(task, version='v1'):
    name, options = CONFIGS[task]
    config = load_config(str(ROOT / f'configs/{name}.py'), options)
    kind, arch = BACKBONES[version]
    config.model.backbone.type, config.model.backbone.arch = f'pvt_mm.{kind.__name__}', arch
    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = MODELS.build(config.model).eval()
    for parameter in model.backbone.stages[1].layers[0].attn.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # far from uniform
    return config, model


def random_image(H, W):
    return np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)


@pytest.mark.parametrize('out_type', ['featmap', 'cls_token', 'v2', 'linear'])
@pytest.mark.parametrize(('stage', 'layer'), LAYERS)
@torch.no_grad()
def test_weights_sum_to_1_and_give_the_layers_own_output(stage, layer, out_type):
    kind, arch = BACKBONES.get(out_type, BACKBONES['v1'])
    backbone = kind(arch, out_type=out_type if kind is PVT else 'featmap').eval()
    attn = backbone.stages[stage].layers[layer].attn
    for parameter in attn.parameters():
        parameter.normal_(std=0.3)  # far from uniform
    seen = {}
    attn.register_forward_hook(lambda _, inputs, output: seen.update(x=inputs[0], size=inputs[1], output=output))
    backbone(torch.randn(1, 3, 96, 160))
    tokens = seen['x'].shape[1]
    assert tokens == seen['size'][0] * seen['size'][1] + (out_type == 'cls_token' and stage == 3)
    for index in (0, 1, tokens // 2, tokens - 1):
        weights, output = attend(attn, seen['x'], seen['size'], index)
        assert weights.shape == (
            attn.num_heads,
            49 if out_type == 'linear' else tokens // arch['sr_ratios'][stage] ** 2,
        )
        torch.testing.assert_close(weights.sum(1), torch.ones(attn.num_heads), atol=1e-5, rtol=0)
        torch.testing.assert_close(output, seen['output'][0, index], atol=1e-5, rtol=0)


def test_padding_by_the_pipeline_is_not_part_of_the_image():
    config, model = build('detector')
    config = copy.deepcopy(config)
    pad = dict(type='Pad', size=(320, 320), pad_val=dict(img=(114, 114, 114)))
    config.test_dataloader.dataset.pipeline.insert(2, pad)
    seen = view(config, model, random_image(120, 150), 'image.png')
    np.testing.assert_allclose(seen.scale, [150 / 160, 120 / 128], rtol=1e-3)
    np.testing.assert_allclose(seen.origin, [0, 0], atol=0.02)
    assert seen.size.tolist() == [160, 128]


@pytest.mark.parametrize('layer', [SRA(8, 2, 3, 0.0, 0.0), SRA(8, 2, 1, 0.0, 0.0), LinearSRA(8, 2, 0.0, 0.0)])
@pytest.mark.parametrize('size', [(11, 3), (14, 30)])
def test_a_key_is_divided_among_the_tokens_that_it_is_computed_from(layer, size):
    (H, W), x = size, torch.randn(1, size[0] * size[1], 8, requires_grad=True)
    across, down = (shares_of(layer, count) for count in (W, H))
    reduced = layer.reduce(x, size)[0].unflatten(0, (len(down), len(across)))
    for i, j in np.ndindex(reduced.shape[:2]):
        share = down[i, :, None] * across[j]  # (H, W)
        (grad,) = torch.autograd.grad(reduced[i, j] @ torch.randn(8), x, retain_graph=True)
        assert torch.equal(share > 0, grad[0].abs().sum(1).unflatten(0, size) > 0)
        torch.testing.assert_close(share[share > 0], torch.full((int((share > 0).sum()),), 1 / int((share > 0).sum())))


@pytest.mark.parametrize('version', ['v1', 'v2'])
def test_a_token_is_in_the_middle_of_what_its_patch_embeddings_see(version):
    kind, arch = BACKBONES[version]
    backbone, image = kind(arch), torch.randn(1, 3, 224, 320, requires_grad=True)
    x = image
    for stage in range(4):
        x = to_map(*backbone.stages[stage].patch_embed(x))
        (grad,) = torch.autograd.grad(x[0, :, 2, 5] @ torch.randn(x.shape[1]), image, retain_graph=True)
        stride, start = grid_of(backbone, stage)
        assert stride == 4 * 2**stage
        for axis, index in ((2, 2), (3, 5)):
            pixels = grad.transpose(axis, 0).flatten(1).any(1).nonzero()
            assert (pixels.min() + pixels.max() + 1) / 2 == start + stride * (index + 0.5)


@pytest.mark.parametrize('version', BACKBONES)
@pytest.mark.parametrize(('stage', 'layer'), LAYERS)
def test_a_detector_sees_the_whole_image_and_padding_right_and_below(stage, layer, version):
    config, model = build('detector', version)
    image = random_image(120, 150)  # resized to 128 x 160, whose sides are multiples of 32
    seen = view(config, model, image, 'image.png')
    np.testing.assert_allclose(seen.scale, [150 / 160, 120 / 128], rtol=1e-3)
    np.testing.assert_allclose(seen.origin, [0, 0], atol=0.02)
    found = attention_of(model.backbone, stage, layer, seen, (100, 30), image.shape[:2])
    stride = 4 * 2**stage
    assert found.weights.shape == (TINY_ARCH['num_heads'][stage], *((7, 7) if version == 'linear' else (4, 5)))
    assert found.on_tokens.shape[1:] == (128 // stride, 160 // stride)
    np.testing.assert_allclose(found.weights.sum((1, 2)), 1, atol=1e-5)
    if version == 'linear':  # of keys that tokens share
        assert found.weights.min() * 0.999 < found.on_tokens.min()
        assert found.on_tokens.max() < found.weights.max() * 1.001
    else:
        each = 32 // stride
        np.testing.assert_allclose(found.on_tokens, found.weights.repeat(each, 1).repeat(each, 2), rtol=1e-5)
    first = 0 if version == 'v1' else 0.5 - stride / 2
    np.testing.assert_allclose(found.cells[0], (first + np.arange(160 // stride + 1) * stride) * 15 / 16, atol=0.05)
    np.testing.assert_allclose(found.padding, 0)
    assert abs(np.array(found.query) - (100.5, 30.5)).max() <= stride / 2
    tall = random_image(100, 40)  # 160 x 64: no padding; 150 x 40 becomes 160 x 43, padded to 64
    for image, grid, padded in (
        (tall, (5, 2), False),
        (random_image(150, 40), (5, 2), True),
        (random_image(40, 150), (2, 5), True),
    ):
        found = attention_of(model.backbone, stage, layer, view(config, model, image, 'x.png'), (5, 5), image.shape[:2])
        assert found.on_tokens.shape[1:] == tuple(side * 32 // stride for side in grid)
        # The centres of PVTv2's last tokens, at multiples of 32 pixels, are in the image.
        assert (found.padding > 0.01).all() == (padded and (version == 'v1' or stage < 3))


@pytest.mark.parametrize('version', BACKBONES)
@torch.no_grad()
def test_the_query_is_the_token_at_the_point(version):
    config, model = build('detector', version)
    attn, kept = model.backbone.stages[1].layers[0].attn, {}
    image = random_image(120, 150)  # resized to 128 x 160: 16 x 20 tokens of 8 pixels
    attn.register_forward_pre_hook(lambda _, inputs: kept.update(x=inputs[0], size=inputs[1]))
    found = attention_of(model.backbone, 1, 0, view(config, model, image, 'x.png'), (102, 30), image.shape[:2])
    # 109.3 and 32.5 pixels
    column, row = (13, 4) if version == 'v1' else (14, 4)  # from 104 and 32; from 108.5 and 28.5
    expected, _ = attend(attn, kept['x'], kept['size'], row * 20 + column)
    np.testing.assert_array_equal(found.weights.reshape(attn.num_heads, -1), expected)
    other, _ = attend(attn, kept['x'], kept['size'], column * 16 + row)
    assert abs(other - expected).max() > 1e-3


@pytest.mark.parametrize('version', BACKBONES)
def test_the_last_pixel_of_an_image_that_tokens_do_not_cover(version):
    _, model = build('detector', version)
    image = View(torch.randn(1, 3, 100, 70), np.ones(2), np.zeros(2), np.array([70, 100]))
    for stage in range(4):
        found = attention_of(model.backbone, stage, 0, image, (69, 99), (100, 70))
        H, W = found.on_tokens.shape[1:]
        np.testing.assert_allclose(found.query, [(edges[-1] + edges[-2]) / 2 for edges in found.cells])
        if version == 'linear':  # whose bins have all tokens
            assert found.on_tokens.min() > 0
        else:
            R = model.backbone.arch.sr_ratios[stage]
            in_keys = np.zeros((H, W), bool)
            in_keys[: H // R * R, : W // R * R] = True
            assert ((found.on_tokens > 0) == in_keys).all()
            np.testing.assert_allclose(found.on_tokens.sum((1, 2)), R * R, rtol=1e-5)


def test_the_map_is_aligned_with_the_image():
    image = np.zeros((60, 80, 3), np.uint8)
    image[..., 0] = 255  # blue
    weights = np.full((1, 3, 4), 0.01)
    weights[0, 0, 3] = 0.9  # the upper right corner
    cells = (np.arange(5) * 20.0, np.arange(4) * 20.0)
    found = Attention(weights, None, weights, cells, np.zeros(1), (5.0, 15.0))
    first, second = plot_attention(image, found, None, 'title').axes[:2]
    assert first.images[0].get_array()[0, 0].tolist() == [0, 0, 255]
    drawn = second.images[1]
    assert drawn.get_extent() == [0, 80, 60, 0]
    assert drawn.origin == 'upper'
    assert np.unravel_index(drawn.get_array()[..., 3].argmax(), (3, 4)) == (0, 3)
    assert second.get_ylim() == (60, 0)
    assert second.lines[0].get_xydata().tolist() == [[5.0, 15.0]]
    assert second.get_title('left') == 'mean of the heads: maximum 90.0%'


def test_a_classifier_sees_the_central_crop_and_the_default_query_is_the_class_token():
    config, model = build('classifier')
    image = random_image(512, 768)
    seen = view(config, model, image, 'image.png')
    # The shorter side becomes 256, and the central 224 x 224 pixels remain: 448 x 448 of the image.
    np.testing.assert_allclose(seen.scale, [2, 2], rtol=1e-3)
    np.testing.assert_allclose(seen.origin, [(768 - 448) / 2, (512 - 448) / 2], atol=0.2)
    found = attention_of(model.backbone, 3, 0, seen, None, image.shape[:2])
    assert found.query is None
    np.testing.assert_allclose(found.weights.sum((1, 2)) + found.class_token, 1, atol=1e-5)
    np.testing.assert_allclose(found.cells[1], 32 + 64 * np.arange(8), atol=0.3)
    with pytest.raises(InputError, match='X must be from 160 to 607 and Y from 32 to 479'):
        attention_of(model.backbone, 3, 0, seen, (159, 100), image.shape[:2])
    assert attention_of(model.backbone, 0, 0, seen, (160, 32), image.shape[:2]).class_token is None
    for backbone, stage in ((model.backbone, 0), (build('detector', 'v2')[1].backbone, 3)):
        with pytest.raises(InputError, match='--query X Y is missing'):
            attention_of(backbone, stage, 0, seen, None, image.shape[:2])


def test_ranges():
    backbone = PVT(TINY_ARCH)
    assert find_layer(backbone, None, None)[1:] == (3, 0)
    assert find_layer(torch.nn.Sequential(backbone), 2, None)[1:] == (1, 1)
    assert choose_heads('each', 3) == [0, 1, 2]
    assert choose_heads('2', 3) == [1]
    assert choose_heads('mean', 3) is None
    for call, message in (
        (lambda: find_layer(backbone, 5, None), '--stage 5: the model has stages 1 to 4'),
        (lambda: find_layer(backbone, 0, None), '--stage 0: the model has stages 1 to 4'),
        (lambda: find_layer(backbone, 2, 3), '--layer 3: stage 2 has layers 1 to 2'),
        (lambda: find_layer(torch.nn.Linear(1, 1), 1, 1), 'the model has no PVT or PVTv2: its backbone is Linear'),
        (lambda: choose_heads('4', 3), '--head 4: the layer has heads 1 to 3'),
        (lambda: choose_heads('all', 3), '--head all: name a head from 1 to 3, or mean, or each'),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_one_panel_per_head_or_one_for_the_mean():
    config, model = build('classifier')
    image = random_image(256, 256)
    found = attention_of(model.backbone, 2, 0, view(config, model, image, 'x.png'), (100, 100), image.shape[:2])
    np.testing.assert_allclose(panels(found.weights, None)['mean of the heads'], found.weights.mean(0))
    for heads, count in ((None, 2), ([1], 2), ([0, 1, 2], 4)):
        axes = plot_attention(image, found, heads, 'title').axes
        assert sum(bool(axis.images) for axis in axes) == count
        assert all(len(axis.lines) == 1 for axis in axes[:count])  # the query is marked in each


@pytest.mark.parametrize('heads', [None, [0]])
def test_a_long_title_stays_on_the_figure(heads):
    found = Attention(np.ones((1, 2, 2)), None, np.ones((1, 2, 2)), (np.arange(3) * 20.0,) * 2, np.zeros(1), (5.0, 5.0))
    title = f'{"my_retinanet_of_shapes_" * 9}, stage 4, layer 2: 7 x 7 keys'
    figure = plot_attention(random_image(40, 40), found, heads, title)
    FigureCanvasAgg(figure).draw()
    box = figure._suptitle.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
    assert figure._suptitle.get_text().endswith('stage 4, layer 2: 7 x 7 keys')
