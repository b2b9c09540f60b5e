"""Training curves: the loss and a metric of one or more runs, from the scalars that MMEngine logs."""

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pvt_mm.analysis.figures import LINE_COLORS, MARKERS, dress, new_figure
from pvt_mm.utils.errors import InputError
from pvt_mm.utils.text import shorten

METRICS = {'coco/bbox_mAP': 'box AP', 'mIoU': 'mIoU (%)', 'accuracy/top1': 'top-1 accuracy (%)'}
NOT_METRICS = ('step', 'epoch', 'iter', 'time', 'data_time', 'memory')


class Point(NamedTuple):
    """The result of one validation: its iteration, its epoch (None if the run counts iterations only), its value."""

    iteration: int
    epoch: int | None
    value: float


@dataclass(frozen=True)
class Run:
    """The logged scalars of a run. Its name, the label in figures, is that of its work directory."""

    name: str
    loss: dict[int, float] = field(default_factory=dict)  # by iteration, in order
    metrics: dict[str, list[Point]] = field(default_factory=dict)  # the validations by metric, in order


def read_runs(paths: Sequence[str | os.PathLike]) -> list[Run]:
    """Reads runs as :func:`read_run` does. Those that share a name are labelled by their paths."""
    runs = [read_run(path) for path in paths]
    names = [run.name for run in runs]
    return [
        run if names.count(run.name) == 1 else Run(str(path), run.loss, run.metrics)
        for run, path in zip(runs, paths, strict=True)
    ]


def read_run(path: str | os.PathLike) -> Run:
    """Reads a run from a work directory or from a single ``scalars.json``.

    A work directory has one log per start. The log of a start that resumed replaces the previous log from its own first
    iteration on; the log of one that did not replaces it completely. A last line that is only partly written, as of a
    run that is still training, is ignored.

    Raises:
        InputError: There is no log, it is not a log of MMEngine, or it has no training loss.
    """
    path = Path(path)
    logs = _logs(path)
    names = [part for part in path.resolve().parts if not re.fullmatch(r'vis_data|\d{8}_\d{6}|scalars\.json', part)]
    run = Run(names[-1])
    for log in logs:
        records = _records(log)
        first = next((int(record['step']) for record in records if 'iter' in record), None)
        if first is not None:
            config = log.with_name('config.py')  # MMEngine writes it; where it is missing, assume that the run resumed
            resumed = not config.is_file() or re.search(r'^resume = True', config.read_text(), re.MULTILINE)
            first = first if resumed else 0
            loss = {step: value for step, value in run.loss.items() if step < first}
            metrics = run.metrics.items()
            run = Run(run.name, loss, {name: [p for p in ps if p.iteration < first] for name, ps in metrics})
        _add(run, records)
    if not run.loss:
        raise InputError(f'{shorten(logs)}: no training loss is logged (yet)')
    return run


def _logs(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.exists():
        raise InputError(f'the log {path} does not exist: name a work directory or a scalars.json')
    for pattern in ('*/vis_data/scalars.json', 'vis_data/scalars.json', 'scalars.json'):
        logs = sorted(path.glob(pattern))  # the folders are named after the time
        if logs:
            return logs
    raise InputError(f'{path} has no log: there is no <timestamp>/vis_data/scalars.json in it')


def _records(log: Path) -> list[dict]:
    lines = log.read_text(encoding='utf-8', errors='replace').splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line) if line.strip() else {}
            if record:
                int(record['step'])
                records.append(record)
        except (ValueError, KeyError, TypeError):
            if number < len(lines) or not records:
                raise InputError(
                    f'{log} is not a log of MMEngine: line {number} is not a JSON object with a step'
                ) from None
    return records


def _add(run: Run, records: list[dict]) -> None:
    # A resumed run may begin with the validation that was interrupted.
    epochs = any(point.epoch is not None for points in run.metrics.values() for point in points)
    epoch = next((record.get('epoch') for record in records if 'iter' in record), math.inf if epochs else None)
    iteration = max(run.loss, default=0)
    for record in records:
        step = int(record['step'])
        if 'iter' in record:
            iteration, epoch = step, record.get('epoch')
            if 'loss' in record:
                run.loss[step] = float(record['loss'])
            continue
        # The step of a validation is an epoch or an iteration; the log does not say which. An epoch is never ahead of
        # the training's.
        by_epoch = epoch is not None and step <= epoch
        for name, value in record.items():
            if name not in NOT_METRICS and isinstance(value, (int, float)):
                point = Point(iteration, step, float(value)) if by_epoch else Point(step, None, float(value))
                points = run.metrics.setdefault(name, [])
                if points and points[-1][:2] == point[:2]:
                    points.pop()  # the same validation, repeated
                points.append(point)


def choose_metric(runs: Sequence[Run], metric: str | None = None) -> str | None:
    """Returns the metric to plot: ``metric``, or by default the first of :data:`METRICS` that a run has, or None.

    Raises:
        InputError: A run does not have ``metric``; the message lists its metrics.
    """
    if metric is None:
        return next((name for name in METRICS if any(run.metrics.get(name) for run in runs)), None)
    for run in runs:
        if not run.metrics.get(metric):
            there = shorten((name for name, points in run.metrics.items() if points), limit=20)
            raise InputError(f'{run.name} has no metric {metric}; it has {there or "none: it was never validated"}')
    return metric


def last_and_best(run: Run, metric: str) -> tuple[Point, Point]:
    """Returns the last and the best validation of a run: the highest, or the lowest of an error or a loss."""
    points = run.metrics[metric]
    finite = [point for point in points if math.isfinite(point.value)]
    best = min if re.search(r'error|loss', metric) else max
    return points[-1], best(finite, key=lambda point: point.value, default=points[-1])


def plot_curves(runs: Sequence[Run], metric: str | None) -> Figure:
    """Plots the training loss and, next to it, a metric, if it is not None, of the runs that have it.

    The loss is plotted as logged, faint, and smoothed. The number at the end of a curve is its last value, for the loss
    the last smoothed one.
    """
    styles = ('-', '--', ':', '-.')
    width, height = 11 if metric else 6, 4.2 if len(runs) == 1 else 4.6
    with new_figure(width, height, 2 if metric else 1) as (figure, axes):
        loss_axes, *others = np.ravel(axes)
        dress(loss_axes, 'Training loss', 'iteration', 'loss')
        loss_ends, metric_ends = [], []
        by_epoch = all(point.epoch is not None for run in runs for point in run.metrics.get(metric, ()))
        for number, run in enumerate(runs):
            color = LINE_COLORS[number % len(LINE_COLORS)]
            line = dict(color=color, linewidth=2, linestyle=styles[number // len(LINE_COLORS) % len(styles)])
            line |= dict(marker=MARKERS[number % len(MARKERS)], markersize=5, clip_on=False)
            steps, losses = np.array(list(run.loss)), np.array(list(run.loss.values()))
            loss_axes.plot(steps, losses, color=color, linewidth=1, alpha=0.35)
            smoothed = smooth(losses)
            loss_axes.plot(steps, smoothed, label=run.name, markevery=[-1], **line)
            loss_ends.append((steps[-1], smoothed[-1], color, _number(smoothed[-1])))
            if run.metrics.get(metric):
                points = run.metrics[metric]
                when = [point.epoch if by_epoch else point.iteration for point in points]
                values = [point.value for point in points]
                marked = list(range(len(points) - 1, -1, -max(1, len(points) // 25)))
                others[0].plot(when, values, markevery=marked, **line)
                metric_ends.append((when[-1], values[-1], color, _number(values[-1])))
        for axes in others:
            label = METRICS.get(metric, metric)
            dress(axes, f'Validation {label.removesuffix(" (%)")}', 'epoch' if by_epoch else 'iteration', label)
            bottom, top = axes.dataLim.intervaly
            if 0 <= bottom < top / 2:  # the curves come near 0
                axes.set_ylim(0, top * 1.06)
            if len(runs) == 1:
                last, best = last_and_best(runs[0], metric)
                if best.value > last.value:
                    when = f'epoch {best.epoch}' if by_epoch else f'iteration {best.iteration}'
                    axes.set_title(f'best {_number(best.value)} at {when}', loc='right', fontsize=10, weight='normal')
        if len(runs) == 1:
            figure.suptitle(runs[0].name, x=0.01, ha='left', fontsize=10, color='0.4')
        else:
            handles, names = loss_axes.get_legend_handles_labels()
            columns = max(1, min(len(names), 120 // (max(map(len, names)) + 8)))
            figure.legend(handles, names, loc='outside lower center', ncols=columns, frameon=False)
        figure.draw_without_rendering()  # computes the layout, which label_ends needs
        label_ends(loss_axes, loss_ends)
        for axes in others:
            label_ends(axes, metric_ends)
    return figure


def smooth(values: np.ndarray) -> np.ndarray:
    """Smooths (N,) values by a Gaussian whose width is 1/50 of N; NaN/Inf are ignored and become NaN."""
    width = max(1.0, len(values) / 50)
    offsets = np.arange(-math.ceil(3 * width), math.ceil(3 * width) + 1)
    kernel = np.exp(-0.5 * (offsets / width) ** 2)
    known = np.isfinite(values)
    sums = np.convolve(np.where(known, values, 0), kernel)[len(offsets) // 2 :][: len(values)]
    weights = np.convolve(known.astype(float), kernel)[len(offsets) // 2 :][: len(values)]
    return np.where(known, sums / np.where(known, weights, 1), np.nan)


def label_ends(axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Writes a label at the end of each curve, to the right of axes whose layout has been computed, without overlaps.

    ``ends`` are the x, y, colour and text of each curve's end; those with NaN/Inf are left out.
    """
    ends = sorted((end for end in ends if math.isfinite(end[1])), key=lambda end: end[1])
    if not ends:
        return
    points_per_pixel = 72 / axes.figure.dpi
    style = dict(xycoords=axes.get_yaxis_transform(), textcoords='offset points', va='center', weight='bold')
    heights = [axes.transData.transform(end[:2])[1] * points_per_pixel for end in ends]
    for (_, y, color, text), height, position in zip(ends, heights, spread(heights, gap=13), strict=True):
        axes.annotate(text, (1, y), (8, position - height), color=color, annotation_clip=False, **style)


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Moves ascending positions as little as possible (least squares) so that they are at least ``gap`` apart."""
    # With i * gap subtracted from the i-th, they only have to ascend: isotonic regression by pooling neighbours.
    pools: list[list[float]] = []
    for i, position in enumerate(positions):
        pools.append([position - i * gap])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    level = [float(np.mean(pool)) for pool in pools for _ in pool]
    return [value + i * gap for i, value in enumerate(level)]


def _number(value: float) -> str:
    return f'{value:.1f}' if abs(value) >= 10 else f'{value:.3f}'
