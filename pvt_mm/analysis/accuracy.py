"""Figure 2 of the paper: accuracy against parameters, as quoted and as measured by runs."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pvt_mm.analysis.figures import LINE_COLORS, MARKERS, dress, new_figure
from pvt_mm.analysis.tables import entries

# For each folder of configs: the metric, the suffix of the configs of one schedule, and the title.
COMPARISONS = {
    'retinanet': ('box AP', '_1x', 'RetinaNet on COCO val2017, 12 epochs'),
    'mask_rcnn': ('mask AP', '_1x', 'Mask R-CNN on COCO val2017, 12 epochs'),
    'semantic_fpn': ('mIoU', '_80k', 'Semantic FPN on ADE20K, 80,000 iterations'),
}
# For each family: the pattern of its configs' names, the label of a point, and the label's position, which keeps it
# clear of the lines.
FAMILIES = {
    'PVT': (r'pvt_([tsml])', 'PVT-{}', dict(xytext=(-5, 5), ha='right', va='bottom')),
    'ResNet': (r'r(\d+)', 'ResNet-{}', dict(xytext=(7, -5), ha='left', va='top')),
    'ResNeXt': (r'x101_(\d+x4d)', 'ResNeXt-101-{}', dict(xytext=(0, 8), ha='center', va='bottom')),
    'ViT': (r'vit_s_p(\d+)', 'ViT-S/{}', dict(xytext=(7, -5), ha='left', va='top')),
}


class Point(NamedTuple):
    """A model: its config, family and name, its parameters in millions, and its accuracy in percent."""

    config: str
    family: str
    name: str
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
        for family, (pattern, name, _) in FAMILIES.items():
            match = re.fullmatch(f'{folder}/{pattern}{ending}', config)
            if match and params is not None and isinstance(quoted, (int, float)):
                name = name.format(match[1].upper() if family == 'PVT' else match[1])
                found.append(Point(config, family, name, params, quoted, runs.get(config, {}).get(metric)))
    return sorted(found, key=lambda point: (list(FAMILIES).index(point.family), point.params_m))


def plot_accuracy(models: Sequence[Point], folder: str) -> Figure:
    """Plots the :func:`points` of a folder, a line for each family; measured values are larger, hollow markers."""
    metric, _, title = COMPARISONS[folder]
    hollow = dict(markersize=13, markerfacecolor='none', markeredgewidth=2, linestyle='none')
    with new_figure(7, 4.6) as (figure, axes):
        families = itertools.groupby(models, key=lambda model: model.family)
        for (family, group), color, marker in zip(families, LINE_COLORS, MARKERS, strict=False):
            line, style = list(group), dict(color=color, marker=marker)
            axes.plot([model.params_m for model in line], [model.quoted for model in line], **style, linewidth=2)
            for model in line:
                if model.measured is not None:
                    axes.plot(model.params_m, model.measured, **style, **hollow)
                text = dict(color=color, weight='bold', fontsize=9, textcoords='offset points')
                axes.annotate(model.name, (model.params_m, model.quoted), **text, **FAMILIES[family][2])
        dress(axes, title, 'parameters of the model (M)', metric)
        axes.margins(x=0.15, y=0.12)
        gray = dict(color='0.4', marker='o', linestyle='none')
        handles = [Line2D([], [], **gray, label=f'{metric} quoted from the paper')]
        if any(model.measured is not None for model in models):
            handles.append(Line2D([], [], **gray | hollow | dict(markersize=10), label=f'{metric} measured'))
        figure.legend(handles=handles, loc='outside lower right', ncols=2, frameon=False)
    return figure
