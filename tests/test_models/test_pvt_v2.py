"""PVTv2 against independent implementations: outputs, gradients, sizes, initialization, and no copies of maps."""

import re

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from pvt_mm.checkpoint.formats import backbone_weights
from pvt_mm.models import whole_strides
from pvt_mm.models.archs import ARCHS_V2
from pvt_mm.models.backbone import PVTv2
from pvt_mm.models.whole_strides import WholeStridesPatchEmbed
from tests.conftest import TINY_ARCH_LINEAR, TINY_ARCH_V2, relative_error
from tests.reference import reference, spread

# The arguments of MMDetection's PVTv2, from Table 1; its defaults are the other columns of the table.
MMDETS = {
    'b0': dict(embed_dims=32, num_layers=[2, 2, 2, 2]),
    'b1': dict(num_layers=[2, 2, 2, 2]),
    'b2': dict(num_layers=[3, 4, 6, 3]),
    'b3': dict(num_layers=[3, 4, 18, 3]),
    'b4': dict(num_layers=[3, 8, 27, 3]),
    'b5': dict(num_layers=[3, 6, 40, 3], mlp_ratios=[4, 4, 4, 4]),
}
# The archs differ in widths and depths, b5 also in E: most sizes on the smallest. Below 61 columns most stages have a
# single key, for which their heads do not matter.
PARITY = [
    ('b0', (224, 224)),
    ('b0', (333, 417)),
    ('b0', (29, 29)),
    ('b1', (64, 96)),
    ('b2', (61, 75)),
    ('b3', (33, 64)),
    ('b4', (32, 64)),
    ('b5', (30, 61)),
]
IN_FLOAT64 = [
    (TINY_ARCH_V2, (224, 224)),
    (TINY_ARCH_V2, (133, 217)),
    (TINY_ARCH_V2, (32, 32)),
    (TINY_ARCH_V2, (29, 29)),
    (TINY_ARCH_LINEAR, (224, 224)),  # a map of 7 x 7 in the last stage
    (TINY_ARCH_LINEAR, (133, 217)),
    (TINY_ARCH_LINEAR, (32, 500)),  # some maps with less than 7 rows, and with more columns
    (TINY_ARCH_LINEAR, (29, 29)),
    (TINY_ARCH_LINEAR, (1, 1)),
]


def outputs_and_gradients(run, parameters: dict[str, Tensor], image: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Returns the outputs of ``run(image)``, and the gradients of the parameters and the image.

    The loss is each map times noise: the squares of a normalized map have the same sum whatever the weights are.
    """
    image, noise = image.clone().requires_grad_(), torch.Generator().manual_seed(1)
    outputs = run(image)
    weights = [torch.randn(output.shape, generator=noise, dtype=output.dtype) for output in outputs]
    loss = sum((output * one).sum() / one.numel() ** 0.5 for output, one in zip(outputs, weights, strict=True))
    found = torch.autograd.grad(loss, [*parameters.values(), image])
    return outputs, dict(zip([*parameters, 'image'], found, strict=True))


def compare(ours: tuple, theirs: tuple, outputs: float, gradients: float) -> None:
    """Asserts the largest differences from ``theirs``, as shares of the largest value.

    Queries of a single key have no gradient; where one is below 0.1% of all, so much stands for its largest value.
    """
    for one, other in zip(ours[0], theirs[0], strict=True):
        assert one.shape == other.shape
        assert relative_error(one, other) < outputs
    assert set(ours[1]) == set(theirs[1])
    largest = max(gradient.abs().max() for gradient in theirs[1].values())
    for name, gradient in theirs[1].items():
        assert ours[1][name].shape == gradient.shape
        scale = max(gradient.abs().max(), 1e-3 * largest)
        assert (ours[1][name] - gradient).abs().max() < gradients * scale, name


def mmdets(arch: str) -> nn.Module:
    """MMDetection's own PVTv2 with the release's eps, which it does not have."""
    from mmdet.models.backbones.pvt import PyramidVisionTransformerV2

    model = PyramidVisionTransformerV2(**MMDETS[arch], drop_path_rate=0.0)
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5 if name.endswith(('.0.norm', 'attn.norm')) else 1e-6
    return model


MMDETS_NAMES = (
    (r'layers\.(\d)\.0\.projection', r'stages.\1.patch_embed.proj'),
    (r'layers\.(\d)\.0\.norm', r'stages.\1.patch_embed.norm'),
    (r'layers\.(\d)\.2\.', r'stages.\1.norm.'),
    (r'layers\.(\d)\.1\.(\d+)', r'stages.\1.layers.\2'),
    (r'attn\.sr\.', 'attn.sr.proj.'),
    (r'attn\.norm', 'attn.sr.norm'),
    (r'attn\.attn\.out_proj', 'attn.proj'),
    (r'ffn\.layers\.0', 'ffn.fc1'),
    (r'ffn\.layers\.1', 'ffn.dwconv'),
    (r'ffn\.layers\.4', 'ffn.fc2'),
)


def from_mmdets(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gives MMDetection's parameters, or gradients of them, our names; it stacks q, k and v."""
    renamed = {}
    for name, value in tensors.items():
        for theirs, ours in MMDETS_NAMES:
            name = re.sub(theirs, ours, name)
        if 'in_proj' in name:
            C = len(value) // 3
            renamed[name.replace('attn.in_proj_', 'q.')] = value[:C]
            renamed[name.replace('attn.in_proj_', 'kv.')] = value[C:]
        else:
            renamed[name] = value.flatten(1) if re.search(r'fc.\.weight', name) else value  # from 1 x 1 convolutions
    return renamed


@pytest.mark.parametrize(('arch', 'size'), PARITY, ids=str)
def test_outputs_and_gradients_equal_mmdets(arch, size):
    theirs, ours = spread(mmdets(arch)), PVTv2(arch, drop_path_rate=0.0)
    ours.load_state_dict(from_mmdets(theirs.state_dict()))
    image = torch.randn(1, 3, *size)
    outputs, gradients = outputs_and_gradients(theirs, dict(theirs.named_parameters()), image)
    found = outputs_and_gradients(ours, dict(ours.named_parameters()), image)
    compare(found, (outputs, from_mmdets(gradients)), 2e-5, 2e-4)


@pytest.mark.parametrize(('arch', 'size'), IN_FLOAT64, ids=lambda value: 'arch' if isinstance(value, dict) else value)
def test_outputs_and_gradients_equal_the_papers(arch, size):
    """In float64, where an eps of 1e-6 in place of 1e-5 is seen."""
    model = spread(PVTv2(arch, drop_path_rate=0.0)).double()
    sizes, parameters = model.arch._asdict(), dict(model.named_parameters())
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = outputs_and_gradients(lambda x: reference(parameters, sizes, x, (0, 1, 2, 3)), parameters, image)
    compare(outputs_and_gradients(model, parameters, image), expected, 1e-10, 1e-9)


@pytest.mark.parametrize('arch', ['b0', 'b2_li'])
def test_outputs_and_gradients_equal_hugging_faces(arch):
    """In float64; with linear SRA in float32 the gradients jump where values fall on different sides of ReLU."""
    transformers = pytest.importorskip('transformers')
    sizes = ARCHS_V2[arch]
    config = transformers.PvtV2Config(
        depths=list(sizes.depths),
        hidden_sizes=list(sizes.embed_dims),
        num_attention_heads=list(sizes.num_heads),
        sr_ratios=list(sizes.sr_ratios),
        mlp_ratios=list(sizes.mlp_ratios),
        linear_attention=sizes.linear,
        out_features=['stage1', 'stage2', 'stage3', 'stage4'],
    )
    theirs = spread(transformers.PvtV2Backbone(config)).double().eval()
    for name, module in theirs.named_modules():
        if isinstance(module, nn.LayerNorm):  # it has 1e-6 everywhere
            module.eps = 1e-5 if 'patch_embedding' in name or 'attention' in name else 1e-6
    ours = PVTv2(arch).double().eval()
    ours.load_state_dict(theirs.state_dict())
    image = torch.randn(1, 3, 61, 75, dtype=torch.float64)
    outputs, gradients = outputs_and_gradients(lambda x: theirs(x).feature_maps, dict(theirs.named_parameters()), image)
    of_image = {'image': gradients.pop('image')}
    found = outputs_and_gradients(ours, dict(ours.named_parameters()), image)
    compare(found, (outputs, backbone_weights(gradients) | of_image), 1e-10, 1e-9)


def test_b2_linear_in_float32_equals_the_papers():
    model, image = spread(PVTv2('b2_li')).eval(), torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = reference(dict(model.named_parameters()), model.arch._asdict(), image, (0, 1, 2, 3))
        for output, other in zip(model(image), expected, strict=True):
            assert relative_error(output, other) < 2e-5


PARAMETERS = {
    'b0': 3_666_760,
    'b1': 14_009_000,
    'b2': 25_362_856,
    'b2_li': 22_553_512,
    'b3': 45_238_696,
    'b4': 62_556_072,
    'b5': 81_956_008,
}


@pytest.mark.parametrize('arch', ARCHS_V2)
def test_parameters_with_the_classifiers_head_are_the_releases(arch):
    with torch.device('meta'):
        model = PVTv2(arch)
    head = 1000 * (ARCHS_V2[arch].embed_dims[-1] + 1)
    assert sum(p.numel() for p in model.parameters()) + head == PARAMETERS[arch]


@pytest.mark.parametrize('arch', ['b1', {**ARCHS_V2['b1']._asdict(), 'linear': True}], ids=['b1', 'linear'])
def test_initialisation_is_the_releases(arch):
    stds = {'proj': 0.02, 'q': 0.02, 'kv': 0.02, 'fc1': 0.02, 'fc2': 0.02, 'dwconv': (2 / 9) ** 0.5}
    for name, parameter in PVTv2(arch).named_parameters():
        module, kind = name.split('.')[-2:]
        if kind == 'bias' or 'norm' in module:
            assert (parameter == float(kind == 'weight')).all(), name
            continue
        std = stds[module]
        if 'patch_embed' in name or '.sr.' in name:
            out_channels, _, *kernel = parameter.shape
            std = (2 / (out_channels * kernel[0] * kernel[1])) ** 0.5
        assert parameter.std().item() == pytest.approx(std, rel=0.06), name
        assert parameter.mean().abs() < 0.1 * std, name


@pytest.mark.parametrize('arch', [TINY_ARCH_V2, TINY_ARCH_LINEAR], ids=['', 'linear'])
@pytest.mark.parametrize('training', [True, False])
def test_no_map_is_copied(arch, training):
    model = PVTv2(arch, drop_path_rate=0.0).train(training)
    image = torch.randn(5, 3, 224, 256).contiguous(memory_format=torch.channels_last)
    model(image)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as events, torch.set_grad_enabled(training):
        outputs = model(image)
    assert all(output.is_contiguous(memory_format=torch.channels_last) for output in outputs)
    copies = [event.input_shapes[0] for event in events.events() if event.name == 'aten::clone']
    assert len(copies) > 0  # of kernels
    assert [shape for shape in copies if shape[0] == len(image)] == []


@pytest.mark.parametrize('size', [(224, 224), (61, 75), (29, 1)])
def test_padding_to_whole_strides_changes_nothing(size, monkeypatch):
    monkeypatch.setattr(whole_strides, 'is_eager', lambda: False)  # as in a compiled model
    layer, image = WholeStridesPatchEmbed(3, 8, 4), torch.randn(1, 3, *size)
    with torch.no_grad():
        expected, grid = layer(image)
    tokens, found = layer(image)
    assert found == grid
    torch.testing.assert_close(tokens, expected, rtol=1e-6, atol=1e-6)
