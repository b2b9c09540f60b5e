"""Figure 6: the backbones' multiply-adds agree with Tables 2 and the papers' text on the figure and on linear SRA."""

import pytest

from pvt_mm.analysis.scale import count_scales, plot_scale
from pvt_mm.utils.errors import InputError
from tests.conftest import ROOT


def test_backbones_are_table_2s_and_as_figure_6_says():
    gflops = count_scales(ROOT / 'configs', (224, 640, 1024))
    for name, expected in (('PVT-S', 3.8), ('PVTv2-B2-Li', 3.9), ('ResNet-50', 4.1), ('ViT-S/16', 9.9)):
        assert gflops[name][0] == pytest.approx(expected, abs=0.05)
    growth = {name: line[-1] / line[0] for name, line in gflops.items()}
    assert growth['ViT-S/16'] > growth['PVT-S'] > growth['ResNet-50']
    last = {name: line[2] / line[1] for name, line in gflops.items()}
    assert last['PVTv2-B2-Li'] == pytest.approx((1024 / 640) ** 2, rel=0.01)  # linear in the pixels
    assert last['PVT-S'] > 1.3 * last['PVTv2-B2-Li']
    assert gflops['PVT-S'][1] == pytest.approx(gflops['ResNet-50'][1], rel=0.2)  # "similar" up to 640 x 640
    axes = plot_scale(gflops, (224, 640, 1024)).axes[0]
    names = [text.get_text().split()[0] for text in axes.texts]
    assert names == ['ViT-S/32', 'PVTv2-B2-Li', 'ResNet-50', 'PVT-S', 'ViT-S/16']


def test_sides_are_multiples_of_32():
    with pytest.raises(InputError, match='--sides 64 112: each must be a multiple of 32'):
        count_scales(ROOT / 'configs', (64, 112))
