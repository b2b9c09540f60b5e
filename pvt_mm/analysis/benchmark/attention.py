"""Which of PyTorch's attention kernels a backbone runs, and what they cost at sizes that they have not seen."""

import contextlib
import functools
import re
import statistics
import time
from typing import NamedTuple

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from pvt_mm.analysis.benchmark.contender import Contender
from pvt_mm.analysis.benchmark.models import SDPBackend, build, precision, sdpa_kernel, synchronize
from pvt_mm.models.pvt import to_map
from pvt_mm.utils.errors import InputError

# The operator that PyTorch's attention calls for each backend.
BACKENDS = {
    'aten::_scaled_dot_product_flash_attention': 'flash',
    'aten::_scaled_dot_product_flash_attention_for_cpu': 'flash',
    'aten::_scaled_dot_product_efficient_attention': 'efficient',
    'aten::_scaled_dot_product_cudnn_attention': 'cuDNN',
    'aten::_scaled_dot_product_attention_math': 'math',  # builds the whole attention map
}


class AttentionKernel(NamedTuple):
    """The attention that ran."""

    backend: str  # one of BACKENDS' values, or '?'
    kernels: tuple[str, ...]  # the GPU's, as its profiler names them


def attention_kernels(backbone: nn.Module, contender: Contender) -> list[AttentionKernel]:
    """Runs an attention layer of each stage of a backbone in training, at a contender's size, batch and dtype."""
    device = contender.device
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == 'cuda' else [])]
    found, x = [], torch.randn(contender.batch, 3, *contender.shape, device=device)
    for stage in backbone.to(device).train().stages:
        with torch.no_grad():
            tokens, size = stage.patch_embed(x)
        with profile(activities=activities) as recorded, precision(contender):
            stage.layers[0].attn(tokens, size)
            synchronize(device)
        names = sorted({event.key for event in recorded.key_averages()})
        backend = '+'.join(sorted({BACKENDS[name] for name in names if name in BACKENDS})) or '?'
        kernels = (name for name in names if re.search('flash|fmha|sdpa|softmax', name) and 'aten::' not in name)
        found.append(AttentionKernel(backend, tuple(kernels)))
        x = to_map(tokens, size)
    return found


class NewSize(NamedTuple):
    """Seconds of a training step: medians over the sizes."""

    first: float  # at a size that the backend has not seen
    second: float  # at the same size again


def time_new_sizes(contender: Contender, backend: str = '', sizes: int = 6) -> NewSize:
    """Times training steps at sizes that change by 32 pixels, with one backend or, without a name, PyTorch's choice.

    Args:
        contender: A backbone to train; its size is the largest.
        backend: A member of ``torch.nn.attention.SDPBackend``. Each is given widths of its own, since plans are kept.
        sizes: How many sizes to take, after one to warm up.

    Raises:
        InputError: This version of PyTorch does not have the backend.
    """
    if backend and not hasattr(SDPBackend, backend):
        raise InputError(f'torch {torch.__version__} cannot choose {backend}')
    model = build(contender)[0].to(contender.device).train()
    H, W = contender.shape
    seconds, chosen = [], contextlib.nullcontext
    if backend:
        chosen = functools.partial(sdpa_kernel, getattr(SDPBackend, backend))
    for i in range(sizes + 1):
        image = torch.randn(contender.batch, 3, H - 32 * i, W, device=contender.device)
        for _ in range(2):
            start = time.perf_counter()
            with precision(contender), chosen():
                sum(output.float().mean() for output in model(image)).backward()
            model.zero_grad()
            synchronize(contender.device)
            seconds.append(time.perf_counter() - start)
    return NewSize(statistics.median(seconds[2::2]), statistics.median(seconds[3::2]))
