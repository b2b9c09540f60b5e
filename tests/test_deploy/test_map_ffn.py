"""Feed-forward layers as convolutions of maps return what PVTv2's own do."""

import pytest
import torch

from pvt_mm.models import PVTv2
from tests.conftest import TINY_ARCH_LINEAR, TINY_ARCH_V2

pytest.importorskip('onnxscript')


@pytest.mark.parametrize('arch', [TINY_ARCH_V2, TINY_ARCH_LINEAR])
def test_values_and_weights_are_the_same(arch):
    from pvt_mm.deploy.map_ffn import MapConvFFN, replace_ffns

    model = PVTv2(arch=arch).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    image = torch.randn(2, 3, 61, 75)
    with torch.no_grad():
        expected = model(image)
        replace_ffns(model)
        assert sum(isinstance(part, MapConvFFN) for part in model.modules()) == sum(arch['depths'])
        for mine, theirs in zip(model(image), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
