"""Plots of a benchmark: time against the scale of the input, and the times of models side by side."""

import itertools
from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from pvt_mm.analysis.benchmark.contender import Result
from pvt_mm.analysis.figures import LINE_COLORS, MARKERS, STYLE, dress


def plot_scales(results: Sequence[Result], machine: str) -> Figure:
    """Draws time and GFLOPs against the side of square images, one line for each model: Figure 6 in time."""
    lines: dict[str, list[Result]] = {}
    for result in results:
        lines.setdefault(result.contender.name, []).append(result)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 4.6), layout='constrained')
        left, right = figure.subplots(1, 2)
        looks = itertools.cycle(zip(LINE_COLORS, MARKERS, strict=True))
        for (name, line), (color, marker) in zip(lines.items(), looks, strict=False):
            line = sorted(line, key=lambda result: result.contender.shape)
            sides = [result.contender.shape[0] for result in line]
            style = dict(color=color, marker=marker, markersize=5, linewidth=2, label=name)
            left.plot(sides, [result.median for result in line], **style)
            if line[0].gflops is not None:
                # Of two lines with the same arithmetic, which coincide, the later one is dashed.
                same = any(ended == round(line[-1].gflops, 1) for ended in (o.get_gid() for o in right.lines))
                right.plot(sides, [result.gflops for result in line], '--' if same else '-', **style)
                right.lines[-1].set_gid(round(line[-1].gflops, 1))
        dress(left, f'Time of a step ({results[0].contender.mode})', 'side of the image (pixels)', 'seconds')
        dress(right, 'Arithmetic', 'side of the image (pixels)', 'GFLOPs (multiply-adds)')
        for axes in (left, right):
            axes.set_ylim(bottom=0)
            axes.set_xticks(sorted({result.contender.shape[0] for result in results}))
        handles, names = left.get_legend_handles_labels()
        figure.legend(handles, names, loc='outside lower center', ncols=len(names), frameon=False)
        figure.suptitle(machine, x=0.995, ha='right', fontsize=7.5, color='0.5')
    return figure


def plot_times(results: Sequence[Result], machine: str) -> Figure:
    """Draws the median step of each result as a bar, with its spread and its ratio to the first."""
    with matplotlib.rc_context({**STYLE, 'axes.spines.left': False}):
        figure = Figure(figsize=(8.5, 1.5 + 0.5 * len(results)), layout='constrained')
        axes = figure.subplots()
        places = range(len(results))
        medians = [result.median for result in results]
        axes.barh(places, medians, 0.62, color=[LINE_COLORS[0]] + ['0.72'] * (len(results) - 1))
        axes.errorbar(medians, places, xerr=[r.spread * r.median for r in results], fmt='none', ecolor='0.3', capsize=3)
        for place, result in zip(places, results, strict=True):
            ratio = f'   {results[0].ratio(result):.2f} x' if place else ''
            axes.annotate(
                f'{result.median:.3g} s{ratio}',
                (result.median * (1 + result.spread), place),
                xytext=(7, 0),
                textcoords='offset points',
                va='center',
                weight='bold' if not place else 'normal',
            )
        axes.set_yticks(places, [result.contender.name for result in results])
        axes.invert_yaxis()
        first = results[0].contender
        H, W = first.shape
        size = '' if first.mode == 'end2end' else f' of {H} x {W} pixels'
        images = f'{results[0].images} image' + 's' * (results[0].images > 1)
        dress(axes, f'{first.mode}: {images}{size}, {first.dtype}', 'seconds', '')
        axes.set_xlim(0, max(medians) * 1.25)
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(nbins=6))
        axes.grid(axis='y', visible=False)
        axes.grid(axis='x', color='0.9')
        figure.text(0.995, 0.005, machine, ha='right', va='bottom', fontsize=7.5, color='0.5')
    return figure
