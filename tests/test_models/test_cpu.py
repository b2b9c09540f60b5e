"""The operators for float32 on a CPU: against PyTorch's own, and what they allocate, keep and count."""

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pvt_mm.models import PVT, cpu
from pvt_mm.models.pvt import attention


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(cpu, 'CHUNK', 2**15)


def plain(function, *args):
    """Runs a function of the backbone as it runs where oneDNN is not: on PyTorch's own operators."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, 'takes', lambda x: False)
        return function(*args)


def plain_ffn(x, weight1, bias1, weight2, bias2):
    return F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2, bias2)


def compare(ours, theirs, inputs):
    """Asserts that two functions have the same value and the same gradients, and returns the value."""
    output, expected = ours(*inputs), theirs(*inputs)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=2e-6)
    towards = torch.randn_like(expected)
    tensors = [value for value in inputs if isinstance(value, torch.Tensor)]
    gradients = [torch.autograd.grad(value, tensors, towards) for value in (output, expected)]
    for gradient, reference in zip(*gradients, strict=True):
        assert (gradient - reference).abs().max() <= 1e-5 * reference.abs().max()
    return output


def ffn_inputs(tokens, dims=16, hidden=64):
    shapes = [(2, tokens, dims), (hidden, dims), (hidden,), (dims, hidden), (dims,)]
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize('threads', [1, 2])
@pytest.mark.parametrize('tokens', [1, 255, 256, 257, 1200])  # 256 of 2 x 64 hidden values each are a thread's chunk
def test_ffn_is_the_ffn(tokens, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        compare(cpu.ffn, plain_ffn, ffn_inputs(tokens))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ('queries', 'keys', 'heads', 'd_head'),
    [(1, 256, 1, 8), (2100, 300, 3, 16), (257, 511, 2, 89), (9, 2, 2, 8), (300, 49, 1, 64)],
)
def test_attention_is_softmax_attention(queries, keys, heads, d_head):
    q = torch.randn(2, queries, heads * d_head, requires_grad=True)
    kv = torch.randn(2, keys, 2 * heads * d_head, requires_grad=True)

    def by_the_equation(q, kv, num_heads):
        k, v = kv.chunk(2, dim=-1)
        q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        weights = (q @ k.transpose(-1, -2) / d_head**0.5).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(-2)

    compare(cpu.attention, by_the_equation, [q, kv, heads])
    compare(lambda *inputs: plain(attention, *inputs, 0.0), by_the_equation, [q, kv, heads])


@pytest.mark.parametrize('threads', [1, 2])
def test_every_thread_has_its_share_of_a_chunk(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rows = [rows.stop - rows.start for rows in cpu._chunks(8192, 64)]
    finally:
        torch.set_num_threads(before)
    assert rows == [512 * threads] * (16 // threads)  # 2**15 values of 64 are 512 rows


@pytest.mark.parametrize('shape', [(2, 3), (1, 700, 48), (3, 5, 100, 48)])
def test_linear_is_the_linear_layer(shape):
    inputs = [torch.randn(size, requires_grad=True) for size in (shape, (70, shape[-1]), (70,))]
    compare(cpu.linear, F.linear, inputs)
    compare(cpu._linear, F.linear, inputs)  # what a compiled model has


@pytest.mark.parametrize('name', ['linear', 'attention', 'ffn'])
def test_operators_are_what_pytorch_asks_of_one(name):
    inputs = {
        'linear': [torch.randn(2, 9, 4, requires_grad=True), torch.randn(6, 4), torch.randn(6)],
        'attention': [torch.randn(2, 9, 8, requires_grad=True), torch.randn(2, 5, 16, requires_grad=True), 2],
        'ffn': ffn_inputs(600),
    }
    torch.library.opcheck(getattr(cpu, f'_{name}'), inputs[name], atol=1e-4, rtol=1e-4)


def test_the_backbone_has_the_outputs_and_gradients_of_pytorchs_own_operators():
    model, image = PVT('tiny', drop_path_rate=0.0), torch.randn(2, 3, 530, 560)

    def run(image):
        return torch.cat([output.flatten(1) for output in model(image)], 1)

    results = []
    for values in (run(image), plain(run, image)):
        results.append((values, torch.autograd.grad(values.square().mean(), list(model.parameters()))))
    (ours, our_gradients), (theirs, their_gradients) = results
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(our_gradients, their_gradients, strict=True):
        assert (ours - theirs).abs().max() <= 2e-5 * theirs.abs().max()


@pytest.mark.parametrize(
    ('other', 'message'),
    [(torch.float64, 'another dtype'), (torch.bfloat16, 'another dtype'), ('meta', 'another device')],
)
def test_they_take_float32_on_a_cpu_alone(other, message):
    x = torch.empty(1, device=other) if isinstance(other, str) else torch.empty(1, dtype=other)
    assert not cpu.takes(x), message
    assert cpu.takes(torch.empty(1))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert not cpu.takes(torch.empty(1))
    with torch.backends.mkldnn.flags(enabled=False):
        assert not cpu.takes(torch.empty(1))


@pytest.mark.parametrize('grad', [False, True])
def test_no_attention_map_and_no_hidden_map_is_ever_allocated(grad):
    height, width, dims = 128, 160, 16
    sizes = dict(num_heads=(1,), patch_sizes=(4,), sr_ratios=(2,), mlp_ratios=(64,))
    model = PVT(dict(embed_dims=(dims,), depths=(2,), **sizes), out_indices=0, drop_path_rate=0.0)
    image = torch.randn(1, 3, 4 * height, 4 * width)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as noted, torch.set_grad_enabled(grad):
        (output,) = model(image)
        if grad:
            output.sum().backward()
    queries, keys = height * width, height * width // 4
    # In bytes. The map of the scores would be 420 MB, the hidden map 84 MB.
    chunk = 4 * max(cpu.CHUNK * torch.get_num_threads(), 64 * keys)
    assert max(event.self_cpu_memory_usage for event in noted.events()) <= max(4 * queries * 3 * dims, 2 * chunk)
    run = [event.name for event in noted.events()]
    assert run.count('pvt_mm::attention') == run.count('pvt_mm::ffn') == 2
    assert run.count('pvt_mm::attention_backward') == run.count('pvt_mm::ffn_backward') == (2 if grad else 0)


def test_a_layer_keeps_little_for_the_backward_pass():
    model = PVT('tiny', drop_path_rate=0.0)
    layer, size = model.stages[0].layers[0], (128, 128)
    tokens = torch.randn(1, 128 * 128, 64, requires_grad=True)
    parameters = {parameter.data_ptr() for parameter in layer.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.data_ptr() not in parameters:
            kept[tensor.data_ptr()] = max(kept.get(tensor.data_ptr(), 0), tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(tokens, size)
    # The input, two norms, the queries, the map to reduce, the attention's output and the residual, and what is R^2
    # times smaller. MMDetection's layer keeps 40 maps and more.
    assert sum(kept.values()) / tokens.numel() < 7.2


def test_a_layer_is_few_operators():
    layer, tokens = PVT('tiny', drop_path_rate=0.0).stages[0].layers[0], torch.randn(1, 128 * 128, 64)

    class Outer(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            count.append(operator)
            return operator(*args, **(kwargs or {}))

    count = []
    with torch.no_grad(), Outer():
        layer(tokens, (128, 128))
    copies = [
        operator for operator in count if operator in (torch.ops.aten.clone.default, torch.ops.aten.copy_.default)
    ]
    work = [operator for operator in count if not operator.is_view]
    # Three norms, two additions, five operators with weights, the attention, and the copy of the patches of the keys.
    assert len(work) - len(copies) <= 12
    assert len(copies) <= 1


def test_flops_are_those_of_pytorchs_own_operators():
    counted = []
    for device in ('cpu', 'meta'):
        model, image = PVT('tiny').to(device), torch.empty(1, 3, 512, 640, device=device)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(image)
        counted.append(counter.get_total_flops())
    assert counted[0] == counted[1] > 0


def test_the_backward_passes_flops_are_counted():
    model, image = PVT('tiny', drop_path_rate=0.0), torch.randn(1, 3, 512, 640)
    with FlopCounterMode(display=False) as counter:
        sum(output.mean() for output in model(image)).backward()
    counted, ours = counter.get_flop_counts()['Global'], torch.ops.pvt_mm
    for forward, backward in ((ours.attention, ours.attention_backward), (ours.ffn, ours.ffn_backward)):
        assert counted[backward] == 2.5 * counted[forward] > 0  # one of two products again, and two for each


def test_a_layer_that_is_replaced_or_hooked_is_called():
    model, image = PVT('tiny', drop_path_rate=0.0).eval(), torch.randn(1, 3, 512, 512)
    layer, called = model.stages[0].layers[0], []
    handles = [
        module.register_forward_hook(lambda module, *_: called.append(module))
        for module in (layer.attn.q, layer.attn.sr.proj, layer.ffn.fc1, layer.ffn.fc2)
    ]
    with torch.no_grad():
        before = model(image)[0]
        assert len(called) == 4
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(model(image)[0], before, rtol=1e-5, atol=1e-5)
        layer.ffn.fc1 = torch.nn.Sequential(layer.ffn.fc1, torch.nn.ReLU())  # as an adapter would
        assert not torch.allclose(model(image)[0], before, atol=1e-3)


def test_a_traced_model_has_pytorchs_own_operators():
    model, image = PVT('tiny', out_indices=0).eval(), torch.randn(1, 3, 512, 512)
    traced = torch.jit.trace(model, image)
    assert 'pvt_mm::' not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(image)[0], model(image)[0], rtol=1e-5, atol=1e-5)


def test_compiled_graphs_are_few_whatever_the_sizes():
    sizes = dict(depths=(1, 1), num_heads=(1, 2), patch_sizes=(4, 2), sr_ratios=(4, 2), mlp_ratios=(4, 4))
    model = PVT(dict(embed_dims=(8, 16), **sizes), drop_path_rate=0.0, out_indices=(0, 1))
    torch._dynamo.reset()
    compiled = torch.compile(model, dynamic=True, fullgraph=True, backend='aot_eager')
    graphs = []
    for H, W in [(64, 96), (544, 512), (128, 800), (512, 544), (96, 64), (640, 672)]:
        image = torch.randn(1, 3, H, W)
        for output, expected in zip(compiled(image), model(image), strict=True):
            torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
        sum(output.sum() for output in compiled(image)).backward()
        graphs.append(torch._dynamo.utils.counters['stats']['unique_graphs'])
    assert graphs[-1] == graphs[0]
