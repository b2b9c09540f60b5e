"""Linear SRA in compiled and exported models: the average of PyTorch, in one graph for maps of any size."""

import pytest
import torch

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
