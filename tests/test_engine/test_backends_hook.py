"""PyTorch's switches as settings of a config."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import HOOKS

from pvt_mm.engine import BackendsHook
from tests.conftest import ROOT


@pytest.fixture
def cudnn(monkeypatch) -> list[bool]:
    """The switch of cuDNN's attention, which PyTorch before 2.4 does not have."""
    switch = [True]
    monkeypatch.setattr(torch.backends.cuda, 'cudnn_sdp_enabled', lambda: switch[-1], raising=False)
    monkeypatch.setattr(torch.backends.cuda, 'enable_cudnn_sdp', switch.append, raising=False)
    return switch


def test_switches_are_set_for_a_run_and_restored(cudnn):
    hook = BackendsHook(float32_matmul_precision='high', cudnn_attention=False)
    assert (torch.get_float32_matmul_precision(), cudnn) == ('highest', [True])
    hook.before_run(None)
    assert (torch.get_float32_matmul_precision(), cudnn) == ('high', [True, False])
    hook.after_run(None)
    assert (torch.get_float32_matmul_precision(), cudnn) == ('highest', [True, False, True])


def test_by_default_nothing_is_set(cudnn, monkeypatch):
    hook = BackendsHook()
    torch.set_float32_matmul_precision('medium')
    hook.before_run(None)
    assert (torch.get_float32_matmul_precision(), cudnn) == ('medium', [True])
    torch.set_float32_matmul_precision('highest')
    monkeypatch.delattr(torch.backends.cuda, 'cudnn_sdp_enabled')
    monkeypatch.delattr(torch.backends.cuda, 'enable_cudnn_sdp')
    hook = BackendsHook(cudnn_attention=False)
    hook.before_run(None)
    hook.after_run(None)


def test_a_precision_that_is_not_set_is_not_read(cudnn, monkeypatch):
    def fail():
        raise RuntimeError('PyTorch is checking whether allow_tf32 is enabled ... mix of the legacy and new APIs')

    monkeypatch.setattr(torch, 'get_float32_matmul_precision', fail)  # as after matmul.fp32_precision = 'tf32'
    hook = BackendsHook(cudnn_attention=False)
    hook.before_run(None)
    hook.after_run(None)
    assert cudnn == [True, False, True]


def test_another_precision_says_what_there_is():
    with pytest.raises(ValueError, match="must be 'highest', 'high' or 'medium', got 'fast'"):
        BackendsHook(float32_matmul_precision='fast')


@pytest.mark.parametrize(
    'name', ['retinanet/pvt_s_1x', 'mask_rcnn/pvt_s_3x_ms', 'detr/pvt_s_50e', 'trans2seg/pvt_s_40k']
)
def test_cudnns_attention_is_off_where_sizes_change(name):
    hook = HOOKS.build(Config.fromfile(ROOT / f'configs/{name}.py').default_hooks.backends)
    assert (hook.float32_matmul_precision, hook.cudnn_attention) == (None, False)
