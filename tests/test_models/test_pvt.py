"""PVT against independent implementations: outputs, gradients, sizes, initialization and position embeddings."""

import pytest
import torch
from torch import nn

from pvt_mm.checkpoint.formats import backbone_weights
from pvt_mm.models.archs import ARCHS
from pvt_mm.models.backbone import PVT
from pvt_mm.models.pvt import DropPath, PositionEmbedding
from tests.conftest import TINY_ARCH, align_hugging_faces_eps, relative_error
from tests.reference import reference, spread

# The archs differ in depth only: every size on the smallest, one on each of the others.
PARITY = [
    ('tiny', (224, 224)),
    ('tiny', (448, 448)),
    ('tiny', (224, 896)),
    ('tiny', (320, 417)),
    ('tiny', (800, 608)),
    ('small', (96, 160)),
    ('medium', (97, 130)),
    ('large', (64, 64)),
]
# Where the authors' release crashes or, the last three, uses a table that it did not resample.
RELEASE_BREAKS = [
    (448, 448),
    (224, 896),
    (896, 224),
    (256, 784),
    (392, 512),
    (896, 896),
    (448, 1792),
    (512, 1568),
    (112, 448),
    (32, 1568),
    (64, 784),
]


def mmdet_pvt(arch: str, **kwargs) -> nn.Module:
    """MMDetection's own PVT with the reference's eps, which it does not have."""
    from mmdet.models.backbones.pvt import PyramidVisionTransformer

    sizes = ARCHS[arch]
    model = PyramidVisionTransformer(
        embed_dims=64,
        num_layers=list(sizes.depths),
        num_heads=list(sizes.num_heads),
        **{'drop_path_rate': 0.0, **kwargs},
    )
    model.init_weights()
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5 if name.endswith(('.0.norm', 'attn.norm')) else 1e-6
    return model


def pair(arch: str) -> tuple[PVT, nn.Module]:
    """Our model and MMDetection's with the same weights, none of them at a value that would hide a mistake."""
    theirs = mmdet_pvt(arch)
    for name, parameter in theirs.named_parameters():
        if parameter.dim() == 1:  # biases and norms
            nn.init.normal_(parameter, mean=float(name.endswith('weight')), std=0.2)
        elif 'pos_embed' in name:
            nn.init.normal_(parameter, std=0.5)
    ours = PVT(arch, drop_path_rate=0.0)
    ours.load_state_dict(backbone_weights(theirs.state_dict()))
    return ours, theirs


@pytest.mark.parametrize(('arch', 'size'), PARITY, ids=str)
def test_outputs_and_gradients_equal_mmdets(arch, size):
    ours, theirs = pair(arch)
    image = torch.randn(1, 3, *size)
    outputs, expected = ours(image), theirs(image)
    gradients = [torch.randn_like(output) for output in outputs]
    torch.autograd.backward(outputs, gradients)
    for output, other in zip(outputs, expected, strict=True):
        assert output.shape == other.shape
        assert relative_error(output, other) < 1e-5
    torch.autograd.backward(expected, gradients)
    expected = backbone_weights({name: p.grad for name, p in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        assert relative_error(parameter.grad, expected[name]) < 2e-4, name


@pytest.mark.parametrize('size', RELEASE_BREAKS, ids=str)
def test_sizes_that_break_the_authors_release(size):
    model = spread(PVT(TINY_ARCH, drop_path_rate=0.0))
    image = torch.randn(1, 3, *size)
    with torch.no_grad():
        expected = reference(dict(model.named_parameters()), TINY_ARCH, image, (0, 1, 2, 3))
        for output, other in zip(model(image), expected, strict=True):
            assert relative_error(output, other) < 1e-4


def test_outputs_and_gradients_equal_hugging_faces():
    transformers = pytest.importorskip('transformers')
    config = transformers.PvtConfig(depths=[2, 2, 2, 2], drop_path_rate=0.0)
    theirs = transformers.PvtModel(config).eval()
    align_hugging_faces_eps(theirs)
    weights = backbone_weights(theirs.state_dict())
    ours = PVT('tiny', out_indices=(0, 1, 2)).eval()
    ours.load_state_dict({name: weights[name] for name in ours.state_dict()})
    image = torch.randn(2, 3, 224, 224)
    # The last stage has a class token there.
    hidden = theirs(image, output_hidden_states=True).hidden_states
    outputs = [output.flatten(2).transpose(1, 2) for output in ours(image)]
    expected = [[h for h in hidden if h.shape == output.shape][-1] for output in outputs]
    for output, other in zip(outputs, expected, strict=True):
        assert relative_error(output, other) < 1e-5
    gradients = [torch.randn_like(output) for output in outputs]
    torch.autograd.backward(outputs, gradients)
    torch.autograd.backward(expected, gradients)
    theirs = {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in theirs.named_parameters()}
    gradients = backbone_weights(theirs)
    for name, parameter in ours.named_parameters():
        assert relative_error(parameter.grad, gradients[name]) < 2e-4, name


@pytest.mark.parametrize(
    ('arch', 'millions'), [('tiny', 13.2), ('small', 24.5), ('medium', 44.2), ('large', 61.4), ('small_wide', 46.8)]
)
def test_parameters_with_the_classifiers_head_are_table_2s(arch, millions):
    with torch.device('meta'):
        model = PVT(arch)
    dims = ARCHS[arch].embed_dims[-1]
    token, its_position, norm, head = dims, dims, 2 * dims, 1000 * (dims + 1)
    count = sum(p.numel() for p in model.parameters()) + token + its_position + norm + head
    assert count / 1e6 == pytest.approx(millions, abs=0.05)


def test_initialisation_is_the_references():
    model = PVT('small')
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        if name.endswith('pos_embed.table') or (name.endswith('weight') and 'norm' not in name):
            if 'patch_embed' in name or '.sr.' in name:
                bound = values[0].numel() ** -0.5
                assert values.abs().max() <= bound
                assert values.std() == pytest.approx(bound / 3**0.5, rel=0.05)
            else:
                assert values.std() == pytest.approx(0.02, rel=0.05), name
        elif 'norm' in name:
            assert (values == float(name.endswith('weight'))).all()
        elif name.endswith('bias') and '.sr.' not in name and 'patch_embed' not in name:
            assert (values == 0).all(), name


def test_eps_are_the_references():
    for name, module in PVT(TINY_ARCH).named_modules():
        if isinstance(module, nn.LayerNorm):
            assert module.eps == (1e-5 if 'patch_embed' in name or '.sr.' in name else 1e-6)


def test_drop_path_drops_samples_and_keeps_the_mean():
    x = torch.ones(4000, 2, 3)
    dropped = DropPath(0.25).train()(x)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert (dropped.amax((1, 2)) == dropped.amin((1, 2))).all()
    assert dropped.mean() == pytest.approx(1, abs=0.05)
    assert torch.equal(DropPath(0.25).eval()(x), x)


# ------------------------------------------------------------------------------------------------ position embeddings


def test_position_embeddings_are_exact_at_their_own_size():
    embedding = PositionEmbedding((7, 9), 4)
    nn.init.normal_(embedding.table)
    assert torch.equal(embedding((7, 9)), embedding.table.flatten(1, 2))


def test_position_embeddings_are_resampled_with_half_pixel_centers():
    embedding = PositionEmbedding((1, 4), 1)
    embedding.table.data = torch.arange(4.0).view(1, 1, 4, 1)
    assert embedding((1, 8)).flatten().tolist() == [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]
