"""Linear SRA in compiled and exported models: the average of PyTorch, in one graph for maps of any size."""

import pytest
import torch
import torch.nn.functional as F

from pvt_mm.models import matrix_pool
from pvt_mm.models.matrix_pool import MatrixPoolSRA


@pytest.mark.parametrize('size', [(7, 14), (8, 13), (3, 50), (1, 1), (200, 333)])
def test_matrices_average_as_pytorch_does(size, monkeypatch):
    layer, x = MatrixPoolSRA(2, 1, 0.0, 0.0), torch.randn(2, 3, *size, dtype=torch.float64)
    expected = layer.pool(x)
    monkeypatch.setattr(matrix_pool, 'is_eager', lambda: False)
    found = layer.pool(x)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-15)
    for dtype in (torch.bfloat16, torch.float16):
        assert layer.pool(x.to(dtype)).dtype == dtype
        torch.testing.assert_close(
            layer.pool(torch.ones(1, 1, *size, dtype=dtype)), torch.ones(1, 1, 7, 7, dtype=dtype)
        )


@pytest.mark.parametrize('deterministic', [False, True])
def test_deterministic_models_do_without_adaptive_pooling(deterministic, monkeypatch):
    """CUDA's has no deterministic backward pass; ``--deterministic`` asks for one."""
    layer, x = MatrixPoolSRA(2, 1, 0.0, 0.0), torch.randn(2, 3, 9, 13, dtype=torch.float64, requires_grad=True)
    expected = F.adaptive_avg_pool2d(x, 7)
    run, calls = F.adaptive_avg_pool2d, []
    monkeypatch.setattr(F, 'adaptive_avg_pool2d', lambda *given: calls.append(1) or run(*given))
    torch.use_deterministic_algorithms(deterministic)
    try:
        found = layer.pool(x)
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(calls) == (not deterministic)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-15)
    gradients = [torch.autograd.grad(output.square().sum(), x)[0] for output in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-13, atol=1e-15)
