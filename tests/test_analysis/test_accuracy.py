"""Figure 2: each of the paper's models once, and markers of measured values."""

import pytest

from pvt_mm.analysis.accuracy import COMPARISONS, plot_accuracy, points
from tests.conftest import ROOT

CONFIGS = ROOT / 'configs'


def test_retinanets_are_table_3s_and_8s():
    models = points(CONFIGS, {'retinanet/pvt_s_1x': {'box AP': 40.1}}, 'retinanet')
    assert [(one.name, one.params_m, one.quoted) for one in models] == [
        ('PVT-T', 23.0, 36.7),
        ('PVT-S', 34.2, 40.4),
        ('PVT-M', 53.9, 41.9),
        ('PVT-L', 71.1, 42.6),
        ('ResNet-18', 21.3, 31.8),
        ('ResNet-50', 37.7, 36.3),
        ('ResNet-101', 56.7, 38.5),
        ('ResNeXt-101-32x4d', 56.4, 39.9),
        ('ResNeXt-101-64x4d', 95.5, 41.0),
        ('ViT-S/32', 60.8, 31.7),
    ]
    assert {one.config: one.measured for one in models if one.measured} == {'retinanet/pvt_s_1x': 40.1}


@pytest.mark.parametrize('folder', COMPARISONS)
@pytest.mark.parametrize('measured', [None, 41.5])
def test_measured_values_are_hollow_markers(folder, measured):
    runs = {f'{folder}/pvt_s{COMPARISONS[folder][1]}': {COMPARISONS[folder][0]: measured}} if measured else {}
    models = points(CONFIGS, runs, folder)
    figure = plot_accuracy(models, folder)
    assert [text.get_text() for text in figure.axes[0].texts] == [one.name for one in models]
    figure.draw_without_rendering()
    inside = figure.axes[0].get_window_extent()
    for text in figure.axes[0].texts:
        assert inside.x0 < text.get_window_extent().x0 < text.get_window_extent().x1 < inside.x1, text.get_text()
    hollow = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == 'none']
    assert [line.get_ydata().tolist() for line in hollow] == ([[measured]] if measured else [])
    assert len(figure.legends[0].legend_handles) == (2 if measured else 1)
