"""The backbone on a device: the CPU's outputs and gradients, fused attention, and no synchronization."""

import copy

import pytest
import torch

from pvt_mm.analysis.benchmark.attention import attention_kernels
from pvt_mm.analysis.benchmark.contender import Contender
from pvt_mm.models.archs import ARCHS, ARCHS_V2
from pvt_mm.models.backbone import PVT, PVTv2
from tests.conftest import TINY_ARCH, TINY_ARCH_LINEAR, TINY_ARCH_V2

# What stands for an arch on the CPU; heads of 9, as those of small_wide are odd.
SMALL = {
    'small': TINY_ARCH,
    'small_wide': {**TINY_ARCH, 'embed_dims': (9, 18, 27, 36)},
    'b2': TINY_ARCH_V2,
    'b2_li': TINY_ARCH_LINEAR,
}
KINDS = {
    'featmap': {},
    'cls_token': dict(out_type='cls_token'),
    'with_cp': dict(with_cp=True),
    'wide': dict(arch='small_wide'),
    'v2': dict(arch='b2'),
    'v2 avg_featmap': dict(arch='b2', out_type='avg_featmap', with_cp=True),
    'v2 linear': dict(arch='b2_li'),
}
# Bounds of the error of each output, and of all gradients together, as shares of their norm.
BOUNDS = {'float32': (3e-5, 3e-4), 'bfloat16': (3e-2, 2e-1), 'float16': (5e-3, 5e-2)}
LOSS_SCALE = 2.0**10  # as AMP's: float16 has no smaller gradients


def build(device: str, arch: str = 'small', **kwargs) -> PVT | PVTv2:
    """Builds a backbone on the CPU, small if the device to test is the CPU."""
    kind = PVTv2 if arch in ARCHS_V2 else PVT
    return kind(SMALL[arch] if device == 'cpu' else arch, drop_path_rate=0.0, **kwargs)


def outputs_and_gradient(model: PVT | PVTv2, image: torch.Tensor, device: str, dtype: str) -> list[torch.Tensor]:
    """Returns the outputs, and the gradients of all parameters in one vector, on the CPU in double precision."""
    if (device, dtype) == ('cpu', 'float16') and torch.__version__ < '2.3':
        pytest.skip('float16 on a CPU needs torch 2.3')
    model = copy.deepcopy(model).to(device)
    half = None if dtype == 'float32' else getattr(torch, dtype)
    with torch.autocast(device, dtype=half, enabled=half is not None):
        outputs = model(image.to(device))
    # Noise: the squares of the maps of v2, which are normalized, have about the same sum for any parameters.
    noise = torch.Generator().manual_seed(0)
    weights = [torch.randn(output.shape, generator=noise).to(device) for output in outputs]
    loss = sum((output.float() * one).sum() / one.numel() ** 0.5 for output, one in zip(outputs, weights, strict=True))
    (LOSS_SCALE * loss).backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    return [tensor.detach().cpu().double() for tensor in (*outputs, gradient)]


@pytest.mark.parametrize('dtype', BOUNDS)
@pytest.mark.parametrize('kind', KINDS)
def test_outputs_and_gradients_are_those_of_the_cpu(kind, dtype, device, note, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    model = build(device, **KINDS[kind])
    image = torch.randn(2, 3, *((256, 320) if device == 'cuda' else (64, 96)))
    expected = outputs_and_gradient(model, image, 'cpu', 'float32')
    found = outputs_and_gradient(model, image, device, dtype)
    *outputs, gradient = ((a - b).norm().item() / b.norm().item() for a, b in zip(found, expected, strict=True))
    note(f'{kind}, {dtype}: error of outputs {max(outputs):.1e}, of gradients {gradient:.1e}')
    assert max(outputs) < BOUNDS[dtype][0]
    assert gradient < BOUNDS[dtype][1]


@pytest.mark.parametrize('dtype', BOUNDS)
@pytest.mark.parametrize('arch', SMALL)
def test_no_stage_builds_the_attention_map(arch, dtype, device, note):
    if (device, dtype) == ('cpu', 'float16') and torch.__version__ < '2.3':
        pytest.skip('float16 on a CPU needs torch 2.3')
    shape = (800, 1344) if device == 'cuda' else (64, 96)
    kernels = attention_kernels(build(device, arch), Contender(arch, shape, 'train', device=device, dtype=dtype))
    note(f'attention of {arch}, {dtype}: {", ".join(one.backend for one in kernels)}')
    assert len(kernels) == len(ARCHS['small'].depths)
    for kernel in kernels:
        assert kernel.backend in ('flash', 'efficient', 'cuDNN'), kernel


@pytest.mark.full
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('kind', KINDS)
def test_a_step_does_not_wait_for_the_gpu(kind, dtype, device):
    if device == 'cpu':
        pytest.skip('not run: a CPU has nothing to wait for')
    model = build(device, **KINDS[kind]).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    image = torch.randn(2, 3, 256, 320, device=device)

    def step():
        with torch.autocast(device, dtype=getattr(torch, dtype), enabled=dtype != 'float32'):
            outputs = model(image)
        sum(output.float().square().mean() for output in outputs).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # which makes the state of the optimizer
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode('default')
