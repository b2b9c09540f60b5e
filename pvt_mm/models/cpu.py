"""float32 on a CPU: the products, the attention and the feed-forward layer of the backbone, for speed and memory.

PyTorch gives float32 matrix products to MKL, which on AMD's Zen 5 reaches half the rate of oneDNN, on Zen 4 four fifths
of it, and convolutions to oneDNN. The products here are oneDNN's. :func:`attention` and :func:`ffn` walk the tokens in
chunks whose scores or hidden values stay in a core's cache, and compute them again in the backward pass: what would
else go to memory and back is 16 times the tokens at 800 x 1344 pixels. They are operators of PyTorch, which
``torch.compile`` takes as they are, and have no second derivatives, as PyTorch's own attention has none. Tuned on two
cores of an AMD EPYC, of either kind; not measured on Intel's and ARM's processors.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op
from torch.utils.flop_counter import register_flop_formula

# Values of a chunk's largest map for each thread, 4 bytes each: 1.5 MB.
CHUNK = 3 * 2**17


def takes(x: Tensor) -> bool:
    """Returns whether the functions here are for ``x``; an exported model has PyTorch's own operators instead."""
    return (
        x.device.type == 'cpu'
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled('cpu')
        and not is_exporting()
        and not torch.jit.is_tracing()
        and torch.backends.mkldnn.enabled
        and _HAS_ONEDNN
    )


_HAS_ONEDNN = torch.backends.mkldnn.is_available()
# torch 2.4 to 2.6 know only the wider question.
is_exporting = getattr(torch.compiler, 'is_exporting', torch.compiler.is_compiling)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Returns what ``torch.nn.functional.linear`` does: ``x`` (..., K) by ``weight`` (O, K) is (..., O)."""
    # TorchInductor cannot order the strides of the product's views where their sizes are dynamic.
    return _linear(x, weight, bias) if torch.compiler.is_compiling() else _convolution(x, weight, bias)


def attention(q: Tensor, kv: Tensor, num_heads: int) -> Tensor:
    """Multi-head attention of ``q`` (B, N, C) over the keys and values ``kv`` (B, M, 2 C), side by side: (B, N, C)."""
    return _attention(q, kv, num_heads)


def pays(num_keys: int) -> bool:
    """Returns whether :func:`attention` is faster than PyTorch's for ``num_keys`` M: those of 512 x 512 pixels on."""
    # A compiled model would need a graph for either answer.
    return torch.compiler.is_compiling() or num_keys >= 256


def ffn(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """Two linear layers with an exact GELU between them: (..., C) to (..., C)."""
    if not torch.compiler.is_compiling() and x.numel() // len(weight2) * len(weight1) <= _chunk():
        return linear(F.gelu(linear(x, weight1, bias1)), weight2, bias2)
    return _ffn(x, weight1, bias1, weight2, bias2)


@custom_op('pvt_mm::linear', mutates_args=())
def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _product(x, weight, bias)


@custom_op('pvt_mm::linear_backward', mutates_args=())
def _linear_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    tokens, grads = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    grad_x = _product(grads, weight.t().contiguous()).view(x.shape)
    image, grad = (rows.reshape(1, len(rows), 1, -1).permute(0, 3, 1, 2) for rows in (tokens, grads))
    grad_weight = torch.nn.grad.conv2d_weight(image, (*weight.shape, 1, 1), grad, dilation=2)  # see _convolution
    return grad_x, grad_weight[..., 0, 0].contiguous(), grads.sum(0)


@custom_op('pvt_mm::attention', mutates_args=())
def _attention(q: Tensor, kv: Tensor, num_heads: int) -> Tensor:
    out = torch.empty_like(q)
    for image in range(len(q)):
        for head, k, v in _heads(kv[image], num_heads):
            k, v = (_packed(weight, len(q[image])) for weight in (k * k.shape[1] ** -0.5, v.t()))
            for rows in _chunks(len(q[image]), len(k)):
                out[image, rows, head] = _product(_product(q[image, rows, head], k).softmax(-1), v)
    return out


@custom_op('pvt_mm::attention_backward', mutates_args=())
def _attention_backward(grad: Tensor, q: Tensor, kv: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    grad_q, grad_kv = torch.empty_like(q), torch.empty_like(kv)
    for image in range(len(q)):
        heads = zip(_heads(kv[image], num_heads), _heads(grad_kv[image], num_heads), strict=True)
        for (head, k, v), (_, grad_k, grad_v) in heads:
            scale = k.shape[1] ** -0.5
            k, kt, v = (_packed(weight, len(q[image])) for weight in (k * scale, k.t() * scale, v))
            grad_kt, grad_vt = q.new_zeros(2, k.shape[1], k.shape[0]).unbind(0)  # (d, M) each
            for rows in _chunks(len(q[image]), len(k)):
                q_rows, grad_rows = q[image, rows, head], grad[image, rows, head]
                weights = _product(q_rows, k).softmax(-1)  # (rows, M)
                grad_vt += _sum_of_outer(grad_rows, weights)
                grad_scores = torch.ops.aten._softmax_backward_data(_product(grad_rows, v), weights, -1, q.dtype)
                grad_q[image, rows, head] = _product(grad_scores, kt)
                grad_kt += _sum_of_outer(q_rows, grad_scores)
            grad_k.copy_(grad_kt.t() * scale)
            grad_v.copy_(grad_vt.t())
    return grad_q, grad_kv


@custom_op('pvt_mm::ffn', mutates_args=())
def _ffn(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    tokens = x.reshape(-1, x.shape[-1])
    out = torch.empty_like(tokens, memory_format=torch.contiguous_format)
    weight1, weight2 = (_packed(weight, len(tokens)) for weight in (weight1, weight2))
    for rows in _chunks(len(tokens), len(weight1)):
        out[rows] = _product(_product(tokens[rows], weight1, bias1, 'gelu'), weight2, bias2)
    return out.view(x.shape)


@custom_op('pvt_mm::ffn_backward', mutates_args=())
def _ffn_backward(
    grad: Tensor, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    tokens, grads = x.reshape(-1, x.shape[-1]), grad.reshape(-1, x.shape[-1])
    grad_x = torch.empty_like(tokens, memory_format=torch.contiguous_format)
    grad_bias1 = torch.zeros_like(bias1)
    grad_weight1_t, grad_weight2 = x.new_zeros(weight2.shape), x.new_zeros(weight2.shape)
    packed1, packed1_t, packed2_t = (_packed(weight, len(tokens)) for weight in (weight1, weight1.t(), weight2.t()))
    for rows in _chunks(len(tokens), len(weight1)):
        hidden = _product(tokens[rows], packed1, bias1)  # (rows, E C)
        grad_weight2 += _sum_of_outer(grads[rows], F.gelu(hidden))
        grad_hidden = torch.ops.aten.gelu_backward(_product(grads[rows], packed2_t), hidden)
        grad_weight1_t += _sum_of_outer(tokens[rows], grad_hidden)
        grad_bias1 += grad_hidden.sum(0)
        grad_x[rows] = _product(grad_hidden, packed1_t)
    return grad_x.view(x.shape), grad_weight1_t.t().contiguous(), grad_bias1, grad_weight2, grads.sum(0)


@_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


@_linear_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(len(weight))


@_attention.register_fake
def _(q: Tensor, kv: Tensor, num_heads: int) -> Tensor:
    return torch.empty_like(q)


@_attention_backward.register_fake
def _(grad: Tensor, q: Tensor, kv: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(kv)


@_ffn.register_fake
def _(x: Tensor, *weights: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@_ffn_backward.register_fake
def _(grad: Tensor, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor) -> tuple[Tensor, ...]:
    return x.new_empty(x.shape), *map(torch.empty_like, (weight1, bias1, weight2)), x.new_empty(x.shape[-1])


def _keep_linear(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _keep_attention(ctx, inputs: tuple, output: Tensor) -> None:
    q, kv, ctx.num_heads = inputs
    ctx.save_for_backward(q, kv)


def _keep_ffn(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])


_linear.register_autograd(lambda ctx, grad: _linear_backward(grad, *ctx.saved_tensors), setup_context=_keep_linear)
_attention.register_autograd(
    lambda ctx, grad: (*_attention_backward(grad, *ctx.saved_tensors, ctx.num_heads), None),
    setup_context=_keep_attention,
)
_ffn.register_autograd(lambda ctx, grad: _ffn_backward(grad, *ctx.saved_tensors), setup_context=_keep_ffn)


# The multiply-adds, two operations each, for torch.utils.flop_counter: it cannot look into these operators.


@register_flop_formula(torch.ops.pvt_mm.attention)
def _attention_flop(q: tuple, kv: tuple, *_, **__) -> int:
    return 2 * 2 * math.prod(q) * kv[1]


@register_flop_formula(torch.ops.pvt_mm.attention_backward)
def _attention_backward_flop(grad: tuple, q: tuple, kv: tuple, *_, **__) -> int:
    return 5 * 2 * math.prod(q) * kv[1]  # one of the forward pass again, and two for each


@register_flop_formula(torch.ops.pvt_mm.ffn)
def _ffn_flop(x: tuple, weight1: tuple, *_, **__) -> int:
    return 2 * 2 * math.prod(x) * weight1[0]


@register_flop_formula(torch.ops.pvt_mm.ffn_backward)
def _ffn_backward_flop(grad: tuple, x: tuple, weight1: tuple, *_, **__) -> int:
    return 5 * 2 * math.prod(x) * weight1[0]


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None, then: str = 'none') -> Tensor:
    """Returns ``x`` (..., K) by ``weight`` (O, K), and ``then`` its 'gelu': oneDNN's, which has no gradient."""
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, then, [], 'none')


def _packed(weight: Tensor, num_rows: int) -> Tensor:
    """Returns the weight (O, K) of products of ``num_rows`` rows in all, in the order in which oneDNN reads it.

    It would else be brought into that order for every chunk; for few rows that is cheaper.
    """
    weight = weight.contiguous()
    return weight if num_rows < 2048 else torch.ops.mkldnn._reorder_linear_weight(weight)


def _convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Returns the same product as a convolution by oneDNN, which has one."""
    if x.numel() <= 20480:  # PyTorch keeps small convolutions from oneDNN
        return F.linear(x, weight, bias)
    image = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # (1, K, n, 1), channels-last
    # NOTE: dilation is nothing to a kernel of one pixel, but without it a single thread would not get oneDNN.
    y = F.conv2d(image, weight[..., None, None], bias, dilation=2)  # (1, O, n, 1)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


def _sum_of_outer(narrow: Tensor, wide: Tensor) -> Tensor:
    """Returns ``narrow`` (n, O), transposed, by ``wide`` (n, K), the gradient of a weight: (O, K).

    oneDNN reads the second factor in either order, and of the first, for which it takes one, a copy costs less.
    """
    return _product(narrow.t(), wide.t())


def _chunk() -> int:
    """Returns how many values of its largest map a chunk may have."""
    return CHUNK * torch.get_num_threads()


def _chunks(num_rows: int, width: int) -> Iterator[slice]:
    """Yields the slices that cut ``num_rows`` rows, each ``width`` wide, into chunks of about ``_chunk()`` values."""
    count = max(1, math.ceil(num_rows * width / _chunk()))
    step = math.ceil(num_rows / count / 64) * 64  # oneDNN's gradients of weights are twice as fast on multiples of 16
    for start in range(0, num_rows, step):
        yield slice(start, start + step)


def _heads(kv: Tensor, num_heads: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yields the channels of each head, and of ``kv`` (M, 2 C) its keys and its values: (M, C / heads) each."""
    C = kv.shape[1] // 2
    for start in range(0, C, C // num_heads):
        head = slice(start, start + C // num_heads)
        yield head, kv[:, :C][:, head], kv[:, C:][:, head]
