"""The backbone against independent implementations, and what it promises about sizes, freezing, memory and export."""

import ast
import copy
import runpy
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from mmengine.optim import OptimWrapper
from torch import nn
from torch.nn.utils import prune
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from pvt_mm.apis.launch import leave_process_group
from pvt_mm.checkpoint.formats import backbone_weights
from pvt_mm.models import chunked_ffn, eager, mixed_precision
from pvt_mm.models.archs import ARCHS
from pvt_mm.models.backbone import PVT
from pvt_mm.models.chunked_ffn import ChunkedFFN
from pvt_mm.models.conv_linear import ConvLinear, use_conv_linear
from pvt_mm.models.eager import replace_layers
from pvt_mm.models.mixed_precision import MixedFFN, MixedSRA
from pvt_mm.models.padded_heads import PaddedSRA
from pvt_mm.models.pvt import FFN, SRA, DropPath, EncoderLayer, PositionEmbedding, PyramidVisionTransformer
from pvt_mm.models.residual import OnePassLayer, add_kept, is_supported
from tests.conftest import HALF_DTYPES, ROOT, TINY_ARCH, align_hugging_faces_eps, relative_error
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


def test_the_model_file_is_plain_torch_and_short():
    text = (ROOT / 'pvt_mm/models/pvt.py').read_text()
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    modules = {getattr(node, 'module', None) or node.names[0].name for node in nodes}
    assert {module.split('.')[0] for module in modules} <= {'torch', 'collections'}
    assert text.count('\n') <= 300


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


def test_drop_path_rises_linearly_over_all_layers_built_or_not():
    rates = [m.drop_prob for m in PVT('tiny', drop_path_rate=0.7).modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.1 * i for i in range(8)])
    rates = [m.drop_prob for m in PVT('tiny', drop_path_rate=0.7, out_indices=1).modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_drop_path_drops_samples_and_keeps_the_mean():
    x = torch.ones(4000, 2, 3)
    dropped = DropPath(0.25).train()(x)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert (dropped.amax((1, 2)) == dropped.amin((1, 2))).all()
    assert dropped.mean() == pytest.approx(1, abs=0.05)
    assert torch.equal(DropPath(0.25).eval()(x), x)


@pytest.mark.parametrize('rate', ['drop_rate', 'attn_drop_rate', 'drop_path_rate'])
def test_every_rate_acts_in_training_only(rate):
    model, image = PVT(TINY_ARCH, **{'drop_path_rate': 0.0, rate: 0.5}), torch.randn(2, 3, 64, 64)
    first, second = model.train()(image)[-1], model(image)[-1]
    assert not torch.equal(first, second)
    model.eval()
    assert torch.equal(model(image)[-1], model(image)[-1])


def test_outputs_are_channels_last_views_at_strides_4_to_32():
    outputs = PVT('tiny').eval()(torch.randn(2, 3, 96, 160))
    for output, stride, channels in zip(outputs, (4, 8, 16, 32), (64, 128, 320, 512), strict=True):
        assert output.shape == (2, channels, 96 // stride, 160 // stride)
        assert output.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(('size', 'floored'), [((33, 63), (8, 15)), ((47, 131), (11, 32)), ((32, 32), (8, 8))])
def test_sizes_floor(size, floored):
    outputs = PVT(TINY_ARCH)(torch.randn(1, 3, *size))
    for output in outputs:
        assert tuple(output.shape[2:]) == floored
        floored = floored[0] // 2, floored[1] // 2


@pytest.mark.parametrize('size', [(31, 640), (640, 31)])
def test_too_small_an_input_says_so(size):
    with pytest.raises(ValueError, match=rf'{size[0]} x {size[1]} .* at least 32 x 32'):
        PVT(TINY_ARCH)(torch.randn(1, 3, *size))


def test_spatial_reduction_can_ask_for_a_larger_input():
    model = PVT({**TINY_ARCH, 'sr_ratios': (16, 4, 2, 1)})
    model(torch.randn(1, 3, 64, 64))
    with pytest.raises(ValueError, match='at least 64 x 64'):
        model(torch.randn(1, 3, 63, 64))


@pytest.mark.parametrize('shape', [(3, 64, 64), (1, 4, 64, 64)])
def test_an_input_of_another_shape_says_so(shape):
    with pytest.raises(ValueError, match=r'the input must be \(B, 3, H, W\), got'):
        PVT(TINY_ARCH)(torch.randn(shape))


# ------------------------------------------------------------------------------------------------ position embeddings


def test_position_embeddings_are_exact_at_their_own_size():
    embedding = PositionEmbedding((7, 9), 4)
    nn.init.normal_(embedding.table)
    assert torch.equal(embedding((7, 9)), embedding.table.flatten(1, 2))


def test_position_embeddings_are_resampled_with_half_pixel_centers():
    embedding = PositionEmbedding((1, 4), 1)
    embedding.table.data = torch.arange(4.0).view(1, 1, 4, 1)
    assert embedding((1, 8)).flatten().tolist() == [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]


# ------------------------------------------------------------------------------------------------------ chunks


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('rate', [0.0, 0.5])
def test_ffn_in_chunks_equals_ffn_whole(training, rate, monkeypatch):
    whole = FFN(8, 32, rate).train(training)
    chunked = copy.deepcopy(whole)
    replace_layers(chunked, {FFN: ChunkedFFN})
    assert type(chunked) is ChunkedFFN
    length = 50
    monkeypatch.setattr(chunked_ffn, '_chunk_length', lambda *_: length)
    x = torch.randn(2, 107, 8)
    inputs, outputs = [x.clone().requires_grad_() for _ in range(2)], []
    torch.manual_seed(1)
    outputs.append(torch.cat([whole(part) for part in inputs[0].flatten(0, 1).split(length)]).view(x.shape))
    torch.manual_seed(1)
    calls = []
    handle = chunked.fc1.register_forward_hook(lambda *_: calls.append(1))
    outputs.append(chunked(inputs[1]))
    assert len(calls) == 5
    handle.remove()
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    for one, other in zip(chunked.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_chunks_keep_no_hidden_values(monkeypatch):
    monkeypatch.setattr(chunked_ffn, 'CHUNK_BYTES', 2**12)
    whole, chunked, x = FFN(8, 64, 0.0), FFN(8, 64, 0.0), torch.randn(1, 500, 8, requires_grad=True)
    replace_layers(chunked, {FFN: ChunkedFFN})
    kept = []
    for ffn in (whole, chunked):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t):
            ffn(x)
        kept.append(sum(saved))
    assert kept[1] < 0.1 * kept[0]


def test_linear_layers_as_convolutions_are_the_same():
    model = PVT(TINY_ARCH, drop_path_rate=0.0)
    swapped, image, convolutions = copy.deepcopy(model), torch.randn(1, 3, 320, 256), []
    use_conv_linear(swapped)
    assert sum(type(module) is ConvLinear for module in swapped.modules()) == 5 * sum(TINY_ARCH['depths'])
    with profile(activities=[ProfilerActivity.CPU]) as events:
        outputs = swapped(image)
    convolutions = [event for event in events.events() if event.name == 'aten::conv2d']
    assert len(convolutions) > 10
    for output, expected in zip(outputs, model(image), strict=True):
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    for one in (model, swapped):
        sum(output.square().mean() for output in one(image)).backward()
    for one, other in zip(swapped.parameters(), model.parameters(), strict=True):
        assert relative_error(one.grad, other.grad) < 1e-4
    ffn, x = swapped.stages[0].layers[0].ffn, torch.randn(1, 5000, 8)
    compiled = torch.compile(ffn, dynamic=True, fullgraph=True, backend='aot_eager')
    with torch.no_grad():
        expected = ffn(x)
        compiled(x)
        with profile(activities=[ProfilerActivity.CPU]) as events:
            torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)
    assert not any('conv' in event.name for event in events.events())  # compilers have their own products
    with torch.autocast('cpu', torch.bfloat16):
        assert swapped(image)[0].dtype == torch.bfloat16


# ------------------------------------------------------------------------------------------- faster layers on a GPU


def test_the_backbone_has_faster_layers_and_the_plain_model_has_not():
    def kinds(model: nn.Module) -> set[type]:
        return {type(module) for module in model.modules() if isinstance(module, (SRA, FFN, EncoderLayer))}

    assert kinds(PVT(TINY_ARCH)) == {MixedSRA, MixedFFN, OnePassLayer}
    assert kinds(PVT({**TINY_ARCH, 'embed_dims': (9, 18, 27, 36)})) == {PaddedSRA, MixedFFN, OnePassLayer}
    assert kinds(PyramidVisionTransformer()) == {SRA, FFN, EncoderLayer}


def test_residuals_in_one_pass_are_the_same():
    one_pass, image = PVT(TINY_ARCH, drop_path_rate=0.3), torch.randn(8, 3, 96, 64)
    plain = copy.deepcopy(one_pass)
    replace_layers(plain, {OnePassLayer: EncoderLayer})
    outputs = []
    for model in (one_pass, plain):
        torch.manual_seed(1)
        outputs.append(model(image)[-1])
        outputs[-1].square().sum().backward()
    torch.testing.assert_close(*outputs)
    for one, other in zip(one_pass.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4 * other.grad.abs().max().item())


def test_a_branch_in_half_precision_is_scaled_without_bias():
    x, branch = torch.zeros(64, 3, 8, requires_grad=True), torch.ones(64, 3, 8, dtype=torch.bfloat16).requires_grad_()
    added = add_kept(x, branch, 0.9)
    assert added.dtype == torch.float32
    assert added.unique().tolist() == pytest.approx([0, 1 / 0.9])  # 1.1094 in bfloat16
    added.sum().backward()
    assert (x.grad == 1).all()
    assert branch.grad.dtype == torch.bfloat16
    torch.testing.assert_close(branch.grad, added.detach().bfloat16())


@pytest.mark.parametrize('dtype', HALF_DTYPES)
@pytest.mark.parametrize('channels', [16, 13])
def test_mixed_precision_moves_fewer_bytes_for_the_same_values(dtype, channels, monkeypatch):
    arch = {**TINY_ARCH, 'embed_dims': (channels, 2 * channels, 24, 32), 'num_heads': (1, 2, 3, 4)}
    mixed, image = spread(PVT(arch, drop_path_rate=0.0)), torch.randn(2, 3, 96, 64)
    runs = []
    for stand_in in (None, dtype):  # of CUDA's autocast, on a CPU
        monkeypatch.setattr(mixed_precision, 'mixed_dtype', lambda _, stand_in=stand_in: stand_in)
        mixed.zero_grad()
        with torch.autocast('cpu', dtype):
            outputs = mixed(image)
        sum(output.float().square().mean() for output in outputs).backward()
        runs.append((outputs, [parameter.grad.clone() for parameter in mixed.parameters()]))
    (plain, expected), (outputs, gradients) = runs
    for one, other in zip(outputs, plain, strict=True):
        assert relative_error(one, other) < 0.01
    for (name, parameter), one, other in zip(mixed.named_parameters(), gradients, expected, strict=True):
        assert one.dtype == torch.float32
        assert one.stride() == parameter.stride()
        assert relative_error(one, other) < 0.1, name


@pytest.mark.parametrize('channels', [16, 13])
def test_gelu_of_a_linear_layer_has_the_gradients_of_autograd(channels):
    fc1, x = nn.Linear(channels, 40), torch.randn(2, 9, channels)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [F.gelu(fc1(inputs[0])), mixed_precision._GELULinear.apply(inputs[1], *fc1.parameters(), torch.float32)]
    torch.testing.assert_close(*outputs)
    gradients = [
        torch.autograd.grad(output.square().sum(), [of, *fc1.parameters()])
        for output, of in zip(outputs, inputs, strict=True)
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_one_cast_for_two_readers_adds_their_gradients_in_float32():
    x = torch.randn(5, 7, requires_grad=True)
    for_q, for_kv = mixed_precision._CastForTwo.apply(x, torch.bfloat16)
    assert torch.equal(for_q, x.bfloat16())
    assert torch.equal(for_kv, for_q)
    assert for_kv.data_ptr() == for_q.data_ptr()
    gradients = torch.randn(2, 5, 7).bfloat16()
    torch.autograd.backward([for_q, for_kv], list(gradients))
    assert torch.equal(x.grad, gradients[0].float() + gradients[1].float())


class DoubledLinear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def double(layer: nn.Linear) -> None:
    layer.__class__ = DoubledLinear


def double_by_a_hook(layer: nn.Linear) -> None:
    layer.register_forward_hook(lambda module, inputs, output: 2 * output)


def prune_and_train(layer: nn.Linear) -> None:
    prune.l1_unstructured(layer, 'weight', 0.5)
    with torch.no_grad():
        layer.weight_orig.mul_(2)  # a hook multiplies by the mask


@pytest.mark.parametrize('change', [double, double_by_a_hook, prune_and_train])
def test_what_changes_a_linear_layer_works_under_mixed_precision(change, monkeypatch):
    monkeypatch.setattr(mixed_precision, 'mixed_dtype', lambda x: torch.float32)
    ffn, x = PVT(TINY_ARCH).stages[0].layers[0].ffn, torch.randn(2, 9, 8)
    change(ffn.fc1)
    output = ffn.expand(x)
    assert torch.equal(output, F.gelu(ffn.fc1(x)))
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in ffn.fc1.parameters())


def test_no_layer_is_plain_where_its_hooks_cannot_be_seen(monkeypatch):
    assert eager.is_plain(nn.Linear(1, 1), nn.Linear)
    monkeypatch.setattr(eager, '_HOOKS', ('_renamed_in_another_version',))
    assert not eager.is_plain(nn.Linear(1, 1), nn.Linear)


def test_a_replaced_drop_path_is_called():
    layer = PVT(TINY_ARCH, drop_path_rate=0.3).stages[3].layers[-1]
    assert is_supported(layer.drop_path, torch.randn(1, 1, 1))
    layer.drop_path = nn.Identity()
    x = torch.randn(2, 6, TINY_ARCH['embed_dims'][3])
    expected = x + layer.attn(layer.norm1(x), (2, 3))
    torch.testing.assert_close(layer(x, (2, 3)), expected + layer.ffn(layer.norm2(expected)))


def test_transforms_of_torch_func():
    model, image = PVT(TINY_ARCH, drop_path_rate=0.3), torch.randn(2, 3, 96, 64)
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, nn.Parameter]) -> torch.Tensor:
        torch.manual_seed(1)
        return sum(output.square().mean() for output in torch.func.functional_call(model, parameters, (image,)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked_ffn, 'CHUNK_BYTES', 2**12)
        gradients = torch.func.grad(loss)(parameters)
    expected = torch.autograd.grad(loss(parameters), list(parameters.values()))
    for (name, one), other in zip(gradients.items(), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(('frozen', 'products'), [('', 4), ('x', 3), ('fc1', 2)])
def test_gradients_of_what_is_frozen_are_not_computed(frozen, products):
    fc1, x = nn.Linear(8, 32).requires_grad_(frozen != 'fc1'), torch.randn(1, 10, 8, requires_grad=frozen != 'x')
    output = mixed_precision._GELULinear.apply(x, *fc1.parameters(), torch.float32).sum()
    with FlopCounterMode(display=False) as counter:
        output.backward()
    # fc1's product again, the gradient of x, and twice as wide, since 8 ones follow x, those of the parameters
    assert counter.get_total_flops() == products * 2 * 10 * 8 * 32


def test_only_float32_on_cuda_under_autocast_is_cast_once(monkeypatch):
    def dtype(given: torch.dtype, device: str = 'cuda') -> torch.dtype | None:
        return eager.mixed_dtype(SimpleNamespace(dtype=given, device=torch.device(device)))

    assert dtype(torch.float32) is None
    monkeypatch.setattr(torch, 'is_autocast_enabled', lambda: True)
    assert dtype(torch.float32) == torch.float16
    assert [dtype(given) for given in (torch.float64, torch.float16, torch.bfloat16)] == [None] * 3
    assert dtype(torch.float32, 'cpu') is None


@pytest.mark.skipif(not hasattr(torch.compiler, 'is_compiling'), reason='torch has it under the old name only')
def test_old_names_of_torch_are_not_needed(monkeypatch):
    monkeypatch.delattr(torch._utils, 'is_compiling', raising=False)
    monkeypatch.delattr(torch._C, '_are_functorch_transforms_active')
    assert runpy.run_path(eager.__file__)['is_eager']()


@pytest.mark.parametrize('drop_rate', [0.0, 0.3])
def test_padded_heads_are_the_same(drop_rate):
    attention = PVT({**TINY_ARCH, 'embed_dims': (9, 18, 27, 36)}, drop_rate=drop_rate).stages[1].layers[0].attn
    assert type(attention) is PaddedSRA
    x, widths = torch.randn(2, 48, 18, requires_grad=True), []
    run = F.scaled_dot_product_attention

    def attend(q, k, v, **kwargs):
        widths.extend(tokens.shape[-1] for tokens in (q, k, v))
        return run(q, k, v, **kwargs)

    outputs, gradients = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, 'scaled_dot_product_attention', attend)
        for way in (attention.attend, attention.attend_padded):
            torch.manual_seed(1)
            outputs.append(way(x, attention.reduce(x, (8, 6))))
            gradients.append(torch.autograd.grad(outputs[-1].square().sum(), [x, *attention.parameters()]))
    assert widths == [9] * 3 + [16] * 3
    torch.testing.assert_close(*outputs)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------- freezing, recomputing, copying


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 3, 4])
def test_frozen_stages_hold_from_the_constructor_through_train(frozen_stages):
    model = PVT(TINY_ARCH, frozen_stages=frozen_stages, drop_path_rate=0.5)

    def is_frozen(name: str) -> bool:
        first = name.startswith(('stages.0.patch_embed', 'stages.0.pos_embed'))
        return (frozen_stages >= 0 and first) or int(name.split('.')[1]) < frozen_stages

    for _ in range(2):
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad != is_frozen(name), name
        for i, stage in enumerate(model.stages):
            assert stage.training != (i < frozen_stages)
        model.eval()
        model.train()


def test_frozen_stages_get_no_gradient_and_the_others_do():
    model = PVT(TINY_ARCH, frozen_stages=2)
    sum(output.sum() for output in model(torch.randn(1, 3, 64, 64))).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith(('stages.0', 'stages.1')), name


def test_every_parameter_gets_a_gradient_with_any_outputs():
    for out_indices in [(0, 1, 2, 3), (1, 3), (2,), 0]:
        model = PVT(TINY_ARCH, out_indices=out_indices)
        outputs = model(torch.randn(2, 3, 64, 64))
        sum(output.square().sum() for output in outputs).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_stages_behind_the_last_output_are_not_built():
    full = PVT(TINY_ARCH).eval()
    part = PVT(TINY_ARCH, out_indices=(0, 2)).eval()
    assert len(part.stages) == 3
    part.load_state_dict({k: v for k, v in full.state_dict().items() if not k.startswith('stages.3')})
    image = torch.randn(1, 3, 64, 64)
    outputs = full(image)
    for output, expected in zip(part(image), (outputs[0], outputs[2]), strict=True):
        assert torch.equal(output, expected)


def test_checkpointing_gives_the_same_gradients_and_keeps_less():
    plain = PVT(TINY_ARCH, drop_path_rate=0.3)
    recomputing = PVT(TINY_ARCH, drop_path_rate=0.3, with_cp=True)
    recomputing.load_state_dict(plain.state_dict())
    compare_with_recomputation(plain, recomputing)


def test_checkpointing_recomputes_the_layers_behind_a_frozen_embedding():
    plain = PVT(TINY_ARCH, drop_path_rate=0.0, frozen_stages=0)
    recomputing = PVT(TINY_ARCH, drop_path_rate=0.0, frozen_stages=0, with_cp=True)
    recomputing.load_state_dict(plain.state_dict())
    compare_with_recomputation(plain, recomputing)


def compare_with_recomputation(plain: PVT, recomputing: PVT) -> None:
    image, kept = torch.randn(4, 3, 96, 64), {}
    for model in (plain, recomputing):
        torch.manual_seed(1)
        saved = kept.setdefault(model, [])
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t):
            loss = sum(output.square().sum() for output in model(image))
        loss.backward()
    for a, b in zip(plain.parameters(), recomputing.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert sum(kept[recomputing]) < 0.4 * sum(kept[plain])


def test_dropout_is_where_the_reference_has_it():
    model, calls = PVT(TINY_ARCH, drop_rate=0.1), []
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            assert module.p == 0.1
            module.register_forward_hook(lambda *_, name=name: calls.append(name.split('.')[-1]))
    model(torch.randn(1, 3, 64, 64))
    layers = sum(TINY_ARCH['depths'])
    # after each position embedding, after each attention's projection, after both layers of each FFN
    assert [calls.count(name) for name in ('pos_drop', 'proj_drop', 'drop')] == [4, layers, 2 * layers]


def test_copies_and_pickles_are_independent():
    model = PVT(TINY_ARCH).eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = model(image)[-1]
        clone = copy.deepcopy(model)
        model.stages[0].pos_embed.table.add_(1)
        assert torch.equal(clone(image)[-1], expected)
        assert not torch.equal(model(image)[-1], expected)


# ------------------------------------------------------------------------------------------ precision, compile, export


@pytest.mark.parametrize('dtype', HALF_DTYPES)
def test_mixed_precision_is_near_and_trains(dtype):
    model, image = PVT(TINY_ARCH, drop_path_rate=0.0), torch.randn(2, 3, 96, 64)
    expected = model(image)[-1]
    with torch.autocast('cpu', dtype=dtype):
        outputs = model(image)
        sum(output.float().square().mean() for output in outputs).backward()
    assert relative_error(outputs[-1], expected) < 0.05
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    half = copy.deepcopy(model).to(dtype).eval()
    assert relative_error(half(image.to(dtype))[-1].float(), model.eval()(image)[-1]) < 0.05


def test_compiled_equals_eager_in_one_graph():
    model = PVT(TINY_ARCH, drop_path_rate=0.0, out_indices=(0, 1))
    compiled = torch.compile(model, dynamic=True, fullgraph=True, backend='aot_eager')
    for size in [(64, 96), (97, 70)]:
        image = torch.randn(2, 3, *size)
        for output, expected in zip(compiled(image), model(image), strict=True):
            torch.testing.assert_close(output, expected)
    sum(output.square().sum() for output in compiled(image)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.skipif(torch.__version__ < '2.6', reason='its dynamic sizes need torch 2.6')
def test_export_with_dynamic_height_and_width():
    model = PVT(TINY_ARCH).eval()
    sides = {2: torch.export.Dim('height', min=64, max=2048), 3: torch.export.Dim('width', min=64, max=2048)}
    program = torch.export.export(model, (torch.randn(1, 3, 96, 128),), dynamic_shapes=(sides,)).module()
    for size in [(224, 224), (101, 230), (64, 333)]:
        image = torch.randn(1, 3, *size)
        with torch.no_grad():
            for output, expected in zip(program(image), model(image), strict=True):
                torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


# ----------------------------------------------------------------------------------------------------- bad arguments


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(arch='huge'), "unknown arch 'huge': choose from tiny, small"),
        (dict(arch={'depths': (1, 1, 1, 1)}), 'a dict with the keys embed_dims, depths'),
        (dict(arch=3), 'arch must be a name or a dict'),
        (dict(arch={**TINY_ARCH, 'extra': 1}), 'a dict with the keys'),
        (dict(arch={**TINY_ARCH, 'depths': (1, 1)}), 'one number a stage'),
        (dict(arch={**TINY_ARCH, 'depths': (1, 0, 1, 1)}), 'positive integer; got depths'),
        (dict(arch={**TINY_ARCH, 'num_heads': (3, 2, 3, 4)}), 'divisible by num_heads; got 8 and 3'),
        (dict(out_indices=(0, 4)), 'from 0 to 3, got'),
        (dict(out_indices=-1), 'from 0 to 3, got -1'),
        (dict(out_indices=()), 'from 0 to 3'),
        (dict(out_indices=(2, 1)), 'must ascend'),
        (dict(frozen_stages=5), r'from -1 \(none\) to 4 \(all\), got 5'),
        (dict(drop_path_rate=1.0), 'drop_path_rate must be at least 0 and less than 1'),
        (dict(pretrain_img_size=16), 'at least 32, got 16'),
        (dict(in_channels=0), 'in_channels must be a positive integer'),
        (dict(arch={**TINY_ARCH, 'depths': 2}), 'a list or tuple of one number a stage'),
        (dict(frozen_stages=1.5), r'from -1 \(none\) to 4 \(all\), got 1.5'),
        (dict(out_indices=None), 'from 0 to 3, got None'),
        (dict(pretrain_img_size=224.0), 'at least 32, got 224.0'),
        (dict(drop_path_rate='0.1'), 'drop_path_rate must be at least 0 and less than 1'),
        (dict(init_cfg='weights.pth'), "init_cfg must be a dict .* got 'weights.pth'"),
        (dict(init_cfg=[dict(type='Pretrained', checkpoint='a'), dict(type='Constant')]), 'must be one dict'),
    ],
)
def test_wrong_arguments_say_what_is_allowed(arguments, message):
    with pytest.raises(ValueError, match=message):
        PVT(**arguments).init_weights()


# ---------------------------------------------------------------------------------------------------- in the ecosystem


def test_imports_without_mmcv_mmdet_and_mmseg():
    code = (
        'import sys\n'
        'for name in ("mmcv", "mmdet", "mmseg", "torchvision"): sys.modules[name] = None\n'
        'from mmengine.registry import MODELS\n'
        'import torch\n'
        'print(len(MODELS.build(dict(type="pvt_mm.PVT", arch="tiny"))(torch.randn(1, 3, 64, 64))))'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.stdout.strip() == '4', result.stderr


def test_resolves_from_the_registries_with_nothing_imported_first():
    code = (
        'from mmdet.registry import MODELS as DETECTORS\n'
        'from mmseg.registry import MODELS as SEGMENTORS\n'
        'for registry in (DETECTORS, SEGMENTORS):\n'
        '    print(type(registry.build(dict(type="pvt_mm.PVT", arch="tiny", out_indices=0))).__module__)'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.stdout.split() == ['pvt_mm.models.backbone'] * 2, result.stderr


def _step(rank: int, processes: int, port: int, images: torch.Tensor, folder: str) -> None:
    """One step of one of ``processes`` on its share of the images; the first writes the weights."""
    torch.manual_seed(0)
    model = PVT(TINY_ARCH, drop_path_rate=0.0, out_indices=(1, 2))  # no parameter may be left unused
    if processes > 1:
        address = f'tcp://127.0.0.1:{port}'
        torch.distributed.init_process_group('gloo', init_method=address, rank=rank, world_size=processes)
        model = nn.parallel.DistributedDataParallel(model)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        sum(output.square().mean() for output in model(images.chunk(processes)[rank])).backward()
        optimiser.step()
    if rank == 0:
        torch.save(getattr(model, 'module', model).state_dict(), f'{folder}/{processes}.pth')
    if processes > 1:
        leave_process_group()


def test_two_processes_equal_one_with_the_joined_batch(tmp_path):
    images = torch.randn(4, 3, 64, 96)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    _step(0, 1, port, images, str(tmp_path))
    torch.multiprocessing.spawn(_step, (2, port, images, str(tmp_path)), nprocs=2)
    one, two = (torch.load(tmp_path / f'{processes}.pth') for processes in (1, 2))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_an_optimiser_step_lowers_the_loss():
    model = PVT(TINY_ARCH, drop_path_rate=0.0)
    optimiser = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-2))
    image, losses = torch.randn(2, 3, 64, 64), []
    for _ in range(5):
        loss = model(image)[-1].square().mean()
        losses.append(loss.item())
        optimiser.update_params(loss)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(arch={'embed_dims': (4,), 1: (4,)}), 'a dict with the keys'),
        (dict(arch='tiny', frozen_stages='1\n'), r"got '1\\n'"),
        (dict(arch='tiny', drop_rate='0.1'), "got '0.1'"),
    ],
)
def test_a_wrong_argument_is_shown_as_it_was_written(settings, message):
    with pytest.raises(ValueError, match=message) as refused:
        PVT(**settings)
    assert '\n' not in str(refused.value)


def test_an_image_that_is_not_normalised_is_refused():
    with pytest.raises(ValueError, match=r'must be normalized, in floating point, got torch\.uint8'):
        PVT(TINY_ARCH)(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
