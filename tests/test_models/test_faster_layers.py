"""The layers that replace a backbone's where they are faster: the same values, for less memory or fewer bytes."""

import copy
import runpy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from pvt_mm.models import chunked_ffn, eager, mixed_precision
from pvt_mm.models.backbone import PVT, PVTv2
from pvt_mm.models.chunked_ffn import ChunkedConvFFN, ChunkedFFN, ChunkedLinearConvFFN
from pvt_mm.models.conv_linear import ConvLinear, use_conv_linear
from pvt_mm.models.eager import replace_layers
from pvt_mm.models.mixed_precision import MixedFFN, MixedLinearSRA, MixedSRA
from pvt_mm.models.padded_heads import PaddedSRA
from pvt_mm.models.pvt import FFN, SRA, EncoderLayer, PyramidVisionTransformer, to_map, to_tokens
from pvt_mm.models.pvt_v2 import (
    ConvFFN,
    EncoderLayerV2,
    LinearConvFFN,
    LinearSRA,
    PyramidVisionTransformerV2,
)
from pvt_mm.models.residual import OnePassLayer, OnePassLayerV2, add_kept, is_supported
from tests.conftest import HALF_DTYPES, TINY_ARCH, TINY_ARCH_LINEAR, TINY_ARCH_V2, relative_error
from tests.reference import spread

WIDE = {**TINY_ARCH, 'embed_dims': (9, 18, 27, 36)}
PLAIN = {OnePassLayer: EncoderLayer, OnePassLayerV2: EncoderLayerV2}

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


CONV_FFNS = {ConvFFN: ChunkedConvFFN, LinearConvFFN: ChunkedLinearConvFFN}


def by_chunks(ffn: ConvFFN, x: torch.Tensor, size: tuple[int, int], rows: int) -> tuple[torch.Tensor, list[int]]:
    """Returns the output of a ConvFFN that draws the masks of its dropout by chunks, and the tokens of each chunk."""
    hidden = F.gelu(to_tokens(ffn.dwconv(to_map(ffn.expand(x), size)))).unflatten(1, size)  # (B, H, W, E * C)
    if rows >= size[0]:
        chunks, cuts = hidden.split(rows // size[0]), [slice(None)] * len(x)
    else:
        starts = range(0, size[0], rows)
        chunks = [image[:, max(i - 1, 0) : i + rows + 1] for image in hidden.split(1) for i in starts]
        cuts = [slice(i > 0, rows + (i > 0)) for i in starts] * len(x)  # what is not a row next to the chunk
    found = [ffn.drop(ffn.fc2(ffn.drop(chunk)))[:, cut] for chunk, cut in zip(chunks, cuts, strict=False)]
    return torch.cat([chunk.flatten(0, 2) for chunk in found]).view_as(x), [len(c.flatten(0, 2)) for c in chunks]


@pytest.mark.parametrize('kind', CONV_FFNS)
@pytest.mark.parametrize('rate', [0.0, 0.5])
@pytest.mark.parametrize(
    ('rows', 'size', 'count'),
    [
        (1, (7, 4), 3 * 7),
        (3, (7, 4), 3 * 3),  # the last of an image is shorter
        (7, (7, 4), 3),
        (15, (7, 4), 2),  # two images, and one
        (21, (7, 4), 1),
        (2, (5, 1), 3 * 3),
        (2, (1, 6), 2),
    ],
)
def test_conv_ffn_in_chunks_equals_conv_ffn_whole(rows, size, count, rate, kind, monkeypatch):
    whole = spread(kind(8, 32, rate)).double()
    chunked = copy.deepcopy(whole)
    replace_layers(chunked, CONV_FFNS)
    assert type(chunked) is CONV_FFNS[kind]
    monkeypatch.setattr(chunked_ffn, '_chunk_length', lambda *_: rows)
    x = torch.randn(3, size[0] * size[1], 8, dtype=torch.float64).requires_grad_()
    seen = []
    torch.manual_seed(1)
    expected, tokens = by_chunks(whole, x, size, rows)
    torch.manual_seed(1)
    handle = chunked.fc2.register_forward_hook(lambda _, given, output: seen.append(output.numel() // 8))
    outputs = [expected, chunked(x, size)]
    handle.remove()
    assert seen == tokens
    assert len(seen) == count
    torch.testing.assert_close(*outputs)
    gradients = [
        torch.autograd.grad(output.square().sum(), [x, *ffn.parameters()])
        for output, ffn in zip(outputs, (whole, chunked), strict=True)
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(chunked.eval()(x, size), whole.eval()(x, size))


@pytest.mark.parametrize(('kind', 'size'), [(FFN, ()), (ConvFFN, [(25, 20)]), (ConvFFN, [(2, 10)])])
def test_chunks_keep_no_hidden_values(kind, size, monkeypatch):
    monkeypatch.setattr(chunked_ffn, 'CHUNK_BYTES', 2**13 // torch.get_num_threads())
    x = torch.randn(1, 500, 8) if kind is FFN or size == [(25, 20)] else torch.randn(25, 20, 8)
    whole, kept = kind(8, 64, 0.0), []
    chunked = copy.deepcopy(whole)
    replace_layers(chunked, {FFN: ChunkedFFN, **CONV_FFNS})
    for ffn in (whole, chunked):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t):
            ffn(x.requires_grad_(), *size)
        kept.append(sum(saved))
    assert kept[1] < 0.2 * kept[0]


class LargestTensor(TorchDispatchMode):
    """Notes the bytes of the largest tensor that an operator returns."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        made = [tensor.nbytes for tensor in tree_leaves(result) if isinstance(tensor, torch.Tensor)]
        self.bytes = max([self.bytes, *made])
        return result


@pytest.mark.parametrize(('kind', 'size'), [(ChunkedFFN, []), (ChunkedConvFFN, [(40, 336)])])
def test_a_chunk_of_the_first_stage_is_of_6_mb(kind, size, monkeypatch):
    """Where images are 1344 pixels wide; all hidden values of so few rows are 28 MB."""
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 1)
    ffn, x = kind(64, 512, 0.0), torch.randn(1, 40 * 336, 64)
    with LargestTensor() as largest:
        ffn(x, *size)
    assert 5e6 < largest.bytes < 8e6  # rows take those next to them along


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


def kinds(model: nn.Module) -> set[type]:
    return {type(one) for one in model.modules() if isinstance(one, (SRA, FFN, ConvFFN, EncoderLayer, EncoderLayerV2))}


def test_the_backbones_have_faster_layers_and_the_plain_models_have_not():
    assert kinds(PVT(TINY_ARCH)) == {MixedSRA, MixedFFN, OnePassLayer}
    assert kinds(PVT(WIDE)) == {PaddedSRA, MixedFFN, OnePassLayer}
    assert kinds(PVTv2(TINY_ARCH_V2)) == {MixedSRA, ChunkedConvFFN, OnePassLayerV2}
    assert kinds(PVTv2(TINY_ARCH_LINEAR)) == {MixedLinearSRA, ChunkedLinearConvFFN, OnePassLayerV2}
    with torch.device('meta'):
        assert kinds(PyramidVisionTransformer()) == {SRA, FFN, EncoderLayer}
        assert kinds(PyramidVisionTransformerV2()) == {SRA, ConvFFN, EncoderLayerV2}
        assert kinds(PyramidVisionTransformerV2(linear=True)) == {LinearSRA, LinearConvFFN, EncoderLayerV2}


def test_residuals_in_one_pass_are_the_same(build_backbone):
    one_pass, image = build_backbone(drop_path_rate=0.3), torch.randn(8, 3, 96, 64)
    plain = copy.deepcopy(one_pass)
    replace_layers(plain, PLAIN)
    outputs = []
    for model in (one_pass, plain):
        torch.manual_seed(1)
        outputs.append(model(image)[-1])
        (outputs[-1] * torch.randn(outputs[-1].shape)).sum().backward()
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
def test_mixed_precision_moves_fewer_bytes_for_the_same_values(dtype, channels, build_backbone, monkeypatch):
    arch = {**build_backbone.keywords['arch'], 'embed_dims': (channels, 2 * channels, 24, 32)}
    mixed, image = spread(build_backbone(arch=arch, drop_path_rate=0.0)), torch.randn(2, 3, 96, 64)
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
        assert one.squeeze().stride() == parameter.squeeze().stride()
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


def test_a_replaced_drop_path_is_called(build_backbone):
    layer = build_backbone(drop_path_rate=0.3).stages[3].layers[-1]
    x = torch.randn(2, 6, TINY_ARCH['embed_dims'][3])
    assert is_supported(layer.drop_path, x)
    layer.drop_path = nn.Identity()
    plain = copy.deepcopy(layer)
    replace_layers(plain, PLAIN)
    torch.testing.assert_close(layer(x, (2, 3)), plain(x, (2, 3)))


def test_transforms_of_torch_func(build_backbone):
    model, image = build_backbone(drop_path_rate=0.3), torch.randn(2, 3, 96, 64)
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, nn.Parameter]) -> torch.Tensor:
        torch.manual_seed(1)
        outputs = torch.func.functional_call(model, parameters, (image,))
        return sum((output * torch.randn(output.shape)).mean() for output in outputs)

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
    attention = PVT(WIDE, drop_rate=drop_rate).stages[1].layers[0].attn
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
