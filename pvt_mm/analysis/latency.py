"""Plots of a benchmark: time against the scale of the input, and the times of models side by side."""

import itertools
from collections.abc import Sequence

from matplotlib.figure import Figure

from pvt_mm.analysis.benchmark.contender import Result
from pvt_mm.analysis.figures import LINE_COLORS, MARKERS, dress, dress_rows, new_figure


def plot_scales(results: Sequence[Result], machine: str) -> Figure:
    """Draws time and GFLOPs against the side of square images, one line for each model: Figure 6 in time."""
    lines: dict[str, list[Result]] = {}
    for result in results:
        lines.setdefault(result.contender.name, []).append(result)
    with new_figure(10.5, 4.6, columns=2) as (figure, (left, right)):
        looks = itertools.cycle(zip(LINE_COLORS, MARKERS, strict=True))
        drawn = set()  # the last value of each line on the right; of two that coincide, the later one is dashed
        for (name, line), (color, marker) in zip(lines.items(), looks, strict=False):
            line = sorted(line, key=lambda result: result.contender.shape)
            sides = [result.contender.shape[0] for result in line]
            style = dict(color=color, marker=marker, markersize=5, linewidth=2, label=name)
            left.plot(sides, [result.median for result in line], **style)
            if line[0].gflops is not None:
                last = round(line[-1].gflops, 1)
                right.plot(sides, [result.gflops for result in line], '--' if last in drawn else '-', **style)
                drawn.add(last)
        dress(left, f'Time of a step ({results[0].contender.mode})', 'side of the image (pixels)', 'seconds')
        dress(right, 'Arithmetic', 'side of the image (pixels)', 'GFLOPs (multiply-adds)')
        for axes in (left, right):
            axes.set(ylim=(0, None), xticks=sorted({result.contender.shape[0] for result in results}))
        handles, names = left.get_legend_handles_labels()
        figure.legend(handles, names, loc='outside lower center', ncols=len(names), frameon=False)
        figure.suptitle(machine, x=0.995, ha='right', fontsize=7.5, color='0.5')
    return figure


def plot_times(results: Sequence[Result], machine: str) -> Figure:
    """Draws the median step of each result as a bar, with its spread and its ratio to the first."""
    with new_figure(8.5, 1.5 + 0.5 * len(results)) as (figure, axes):
        medians = [result.median for result in results]
        errors = dict(xerr=[result.spread * result.median for result in results], ecolor='0.3', capsize=3)
        colors = [LINE_COLORS[0]] + ['0.72'] * (len(results) - 1)
        bars = axes.barh(range(len(results)), medians, 0.62, color=colors, **errors)
        ratios = ['', *(f'   {results[0].ratio(result):.2f} x' for result in results[1:])]
        labels = [f'{median:.3g} s{ratio}' for median, ratio in zip(medians, ratios, strict=True)]
        axes.bar_label(bars, labels, padding=7)[0].set_weight('bold')
        first = results[0].contender
        H, W = first.shape
        size = '' if first.mode == 'end2end' else f' of {H} x {W} pixels'
        images = f'{results[0].images} image' + 's' * (results[0].images > 1)
        title = f'{first.mode}: {images}{size}, {first.dtype}'
        dress_rows(axes, title, 'seconds', [result.contender.name for result in results])
        axes.set_xlim(0, max(medians) * 1.25)
        figure.text(0.995, 0.005, machine, ha='right', va='bottom', fontsize=7.5, color='0.5')
    return figure
