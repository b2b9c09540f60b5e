"""Figure 2: each of the papers' models once, and markers of measured values."""

import itertools

import pytest

from pvt_mm.analysis.accuracy import COMPARISONS, plot_accuracy, points
from tests.conftest import ROOT

CONFIGS = ROOT / 'configs'


def test_retinanets_are_the_tables():
    models = points(CONFIGS, {'retinanet/pvt_s_1x': {'box AP': 40.1}}, 'retinanet')
    assert [(one.family, one.size, one.params_m, one.quoted) for one in models] == [
        ('PVTv2', 'B0', 13.0, 37.2),
        ('PVTv2', 'B1', 23.8, 41.2),
        ('PVTv2', 'B2-Li', 32.3, 43.6),
        ('PVTv2', 'B2', 35.1, 44.6),
        ('PVTv2', 'B3', 55.0, 45.9),
        ('PVTv2', 'B4', 72.3, 46.1),
        ('PVTv2', 'B5', 91.7, 46.2),
        ('PVT', 'T', 23.0, 36.7),
        ('PVT', 'S', 34.2, 40.4),
        ('PVT', 'M', 53.9, 41.9),
        ('PVT', 'L', 71.1, 42.6),
        ('ResNeXt-101', '32x4d', 56.4, 39.9),
        ('ResNeXt-101', '64x4d', 95.5, 41.0),
        ('ResNet', '18', 21.3, 31.8),
        ('ResNet', '50', 37.7, 36.3),
        ('ResNet', '101', 56.7, 38.5),
        ('ViT-S/32', '', 60.8, 31.7),
    ]
    assert {one.config: one.measured for one in models if one.measured} == {'retinanet/pvt_s_1x': 40.1}


@pytest.mark.parametrize('folder', COMPARISONS)
@pytest.mark.parametrize('measured', [None, 41.5])
def test_measured_values_are_hollow_markers(folder, measured):
    runs = {f'{folder}/pvt_s{COMPARISONS[folder][1]}': {COMPARISONS[folder][0]: measured}} if measured else {}
    models = points(CONFIGS, runs, folder)
    figure = plot_accuracy(models, folder)
    figure.draw_without_rendering()
    inside = figure.axes[0].get_window_extent()
    boxes = {text.get_text(): text.get_window_extent() for text in figure.axes[0].texts if text.get_text()}
    assert boxes.keys() == {one.size for one in models if one.size} | {one.family for one in models}
    assert all(inside.x0 < box.x0 < box.x1 < inside.x1 for box in boxes.values())
    overlapping = [(a, b) for a, b in itertools.combinations(boxes, 2) if boxes[a].overlaps(boxes[b])]
    assert not overlapping
    hollow = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == 'none']
    assert [line.get_ydata().tolist() for line in hollow] == ([[measured]] if measured else [])
    assert len(figure.legends[0].legend_handles) == (2 if measured else 1)
