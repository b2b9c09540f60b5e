"""Figure 2 of the paper, with PVTv2: accuracy against parameters, as quoted and as measured by runs."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pvt_mm.analysis.figures import OKABE_ITO, dress, new_figure
from pvt_mm.analysis.tables import entries

# For each folder of configs: the metric, the suffix of the configs of one schedule, and the title.
COMPARISONS = {
    'retinanet': ('box AP', '_1x', 'RetinaNet on COCO val2017, 12 epochs'),
    'mask_rcnn': ('mask AP', '_1x', 'Mask R-CNN on COCO val2017, 12 epochs'),
    'semantic_fpn': ('mIoU', '_80k', 'Semantic FPN on ADE20K, 80,000 iterations'),
}
# The positions of a point's label.
LEFT = dict(xytext=(-5, 5), ha='right', va='bottom')
ABOVE = dict(xytext=(0, 8), ha='center', va='bottom')
BELOW = dict(xytext=(0, -8), ha='center', va='top')
# For each family: the pattern of its configs' names, its color and marker, and the position that keeps its labels clear
# of the lines. The group of the pattern is a point's label.
FAMILIES = {
    'PVTv2': (r'pvt_v2_(b\d(?:_li)?)', OKABE_ITO['blue'], 'o', LEFT),
    'PVT': (r'pvt_([tsml])', OKABE_ITO['sky blue'], 'P', LEFT),
    'ResNeXt-101': (r'x101_(\d+x4d)', OKABE_ITO['vermilion'], 'D', ABOVE),
    'ResNet': (r'r(\d+)', OKABE_ITO['orange'], 's', BELOW),
    'ViT-S/32': (r'vit_s_p32()', OKABE_ITO['green'], '^', BELOW),
}


class Point(NamedTuple):
    """A model: its config, its family and size in that, its parameters in millions, and its accuracy in percent."""

    config: str
    family: str
    size: str
    params_m: float
    quoted: float
    measured: float | None


def points(configs: Path, runs: dict[str, dict[str, float]], folder: str) -> list[Point]:
    """Lists the models of a folder (of :data:`COMPARISONS`) that the paper compares, by family and parameters.

    What they measure is in ``runs``, the first result of :func:`pvt_mm.analysis.tables.measured`.
    """
    metric, ending, _ = COMPARISONS[folder]
    found = []
    for config, entry in entries(configs):
        params = entry['Metadata'].get('Parameters (M)')
        quoted = next((one['Metrics'][metric] for one in entry.get('Results', ()) if metric in one['Metrics']), None)
        for family, (pattern, *_) in FAMILIES.items():
            match = re.fullmatch(f'{folder}/{pattern}{ending}', config)
            if match and params is not None and isinstance(quoted, (int, float)):
                size = match[1].capitalize().replace('_li', '-Li')
                found.append(Point(config, family, size, params, quoted, runs.get(config, {}).get(metric)))
    return sorted(found, key=lambda point: (list(FAMILIES).index(point.family), point.params_m))


def plot_accuracy(models: Sequence[Point], folder: str) -> Figure:
    """Plots the :func:`points` of a folder, a line for each family; measured values are larger, hollow markers."""
    metric, _, title = COMPARISONS[folder]
    hollow = dict(markersize=13, markerfacecolor='none', markeredgewidth=2, linestyle='none')
    with new_figure(8, 4.8) as (figure, axes):
        for family, group in itertools.groupby(models, key=lambda model: model.family):
            line, (_, color, marker, position) = list(group), FAMILIES[family]
            style, text = dict(color=color, marker=marker), dict(color=color, weight='bold', textcoords='offset points')
            axes.plot([model.params_m for model in line], [model.quoted for model in line], **style, linewidth=2)
            for model in line:
                if model.measured is not None:
                    axes.plot(model.params_m, model.measured, **style, **hollow)
                axes.annotate(model.size, (model.params_m, model.quoted), **text, **position, fontsize=9)
            end = dict(xytext=(8, 0), ha='left', va='center')
            axes.annotate(family, (line[-1].params_m, line[-1].quoted), **text, **end, fontsize=11)
        dress(axes, title, 'parameters of the model (M)', metric)
        axes.margins(x=0.06, y=0.12)
        axes.set_xlim(right=axes.get_xlim()[1] * 1.14)  # for the names of the families
        gray = dict(color='0.4', marker='o', linestyle='none')
        handles = [Line2D([], [], **gray, label=f'{metric} quoted from the papers')]
        if any(model.measured is not None for model in models):
            handles.append(Line2D([], [], **gray | hollow | dict(markersize=10), label=f'{metric} measured'))
        figure.legend(handles=handles, loc='outside lower right', ncols=2, frameon=False)
    return figure
