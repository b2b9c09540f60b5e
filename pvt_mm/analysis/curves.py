"""Training curves: MMEngine's scalars read back, and the loss and a metric of one or more runs in one picture."""

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pvt_mm.analysis.figures import OKABE_ITO, STYLE, dress
from pvt_mm.errors import InputError

METRICS = {'coco/bbox_mAP': 'box AP', 'mIoU': 'mIoU (%)', 'accuracy/top1': 'top-1 accuracy (%)'}
NOT_METRICS = ('step', 'epoch', 'iter', 'time', 'data_time', 'memory')


class Point(NamedTuple):
    """One validation: when it was, by the iteration and (None where the run does not count them) the epoch."""

    iteration: int
    epoch: int | None
    value: float


@dataclass(frozen=True)
class Run:
    """What a run logged.

    Attributes:
        name: What to call it in a picture: the name of its work directory.
        loss: The training loss by iteration, in order.
        metrics: The validations by the name of the metric, in order.
    """

    name: str
    loss: dict[int, float] = field(default_factory=dict)
    metrics: dict[str, list[Point]] = field(default_factory=dict)


# ----------------------------------------------------------------------------------------------------------- reading


def read_runs(paths: Sequence[str | os.PathLike]) -> list[Run]:
    """Reads the runs in work directories or ``scalars.json`` files. Those of one name are called by their paths.

    Raises:
        InputError: See :func:`read_run`.
    """
    runs = [read_run(path) for path in paths]
    names = [run.name for run in runs]
    return [
        run if names.count(run.name) == 1 else Run(str(path), run.loss, run.metrics)
        for run, path in zip(runs, paths, strict=True)
    ]


def read_run(path: str | os.PathLike) -> Run:
    """Reads the run in a work directory, or in one ``scalars.json``.

    A work directory has a log of each start. A start that resumed continues the log before it, from its own first
    iteration on; one that did not begins anew. The last log may be of a run that goes on: a last line that is only
    partly written is left out.

    Raises:
        InputError: There is no log, it is no log of MMEngine's, or it has no training loss.
    """
    path = Path(path)
    logs = _logs(path)
    run = Run(_name(path))
    for log in logs:
        records = _records(log)
        first = next((int(record['step']) for record in records if 'iter' in record), None)
        if first is not None:
            _forget(run, first if _resumed(log) else 0)
        _add(run, records)
    if not run.loss:
        raise InputError(f'{", ".join(map(str, logs))}: no training loss is logged (yet)')
    return run


def _logs(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.exists():
        raise InputError(f'the log {path} does not exist: give a work directory or a scalars.json')
    for pattern in ('*/vis_data/scalars.json', 'vis_data/scalars.json', 'scalars.json'):
        logs = sorted(path.glob(pattern))  # the folders are named by the time
        if logs:
            return logs
    raise InputError(f'{path} holds no log: there is no <timestamp>/vis_data/scalars.json in it')


def _name(path: Path) -> str:
    parts = [part for part in path.resolve().parts if not re.fullmatch(r'vis_data|\d{8}_\d{6}|scalars\.json', part)]
    return parts[-1]


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
                raise InputError(f'{log} is no log of MMEngine: line {number} is no JSON object with a step') from None
    return records


def _resumed(log: Path) -> bool:
    """Whether a log goes on with an earlier one. Without the config that MMEngine dumps beside it, it may."""
    config = log.with_name('config.py')
    return not config.is_file() or re.search(r'^resume = True', config.read_text(), re.MULTILINE) is not None


def _forget(run: Run, iteration: int) -> None:
    """Removes what is logged from an iteration on."""
    for step in [step for step in run.loss if step >= iteration]:
        del run.loss[step]
    for name, points in run.metrics.items():
        run.metrics[name] = [point for point in points if point.iteration < iteration]


def _add(run: Run, records: list[dict]) -> None:
    # A run that goes on may begin with the evaluation that it was cut off in.
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
        # A validation's step is its epoch or its iteration; nothing says which, but no epoch is ahead of training.
        by_epoch = epoch is not None and step <= epoch
        for name, value in record.items():
            if name not in NOT_METRICS and isinstance(value, (int, float)):
                point = Point(iteration, step, float(value)) if by_epoch else Point(step, None, float(value))
                points = run.metrics.setdefault(name, [])
                if points and points[-1][:2] == point[:2]:
                    points.pop()  # repeated
                points.append(point)


def choose_metric(runs: Sequence[Run], metric: str | None = None) -> str | None:
    """Returns the metric to draw: ``metric``, or the first of :data:`METRICS` that a run has, or None.

    Raises:
        InputError: A run does not have ``metric``; the message lists what it has.
    """
    if metric is None:
        return next((name for name in METRICS if any(run.metrics.get(name) for run in runs)), None)
    for run in runs:
        if not run.metrics.get(metric):
            there = ', '.join(name for name, points in run.metrics.items() if points)
            raise InputError(f'{run.name} has no metric {metric}; it has {there or "none: it was never validated"}')
    return metric


def last_and_best(run: Run, metric: str) -> tuple[Point, Point]:
    """Returns the last and the best (the first of equals) validation of a run: of an error or a loss, the lowest."""
    points = run.metrics[metric]
    finite = [point for point in points if math.isfinite(point.value)]
    best = min if re.search(r'error|loss', metric) else max
    return points[-1], best(finite, key=lambda point: point.value, default=points[-1])


# ----------------------------------------------------------------------------------------------------------- drawing


def plot_curves(runs: Sequence[Run], metric: str | None) -> Figure:
    """Draws the training loss and beside it a metric, of one run or of several over one another.

    The loss is drawn as logged, faint, and smoothed. The number at the end of a curve is its last value; of the loss,
    the last smoothed one.

    Args:
        runs: The runs.
        metric: What is drawn beside the loss; nothing if None. Runs that do not have it are left out there.
    """
    colors, styles, markers = list(OKABE_ITO.values())[:-1], ('-', '--', ':', '-.'), 'osD^vPX'
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11 if metric else 6, 4.2 if len(runs) == 1 else 4.6), layout='constrained')
        loss_axes, *others = figure.subplots(1, 2 if metric else 1, squeeze=False)[0]
        dress(loss_axes, 'Training loss', 'iteration', 'loss')
        loss_ends, metric_ends = [], []
        by_epoch = all(point.epoch is not None for run in runs for point in run.metrics.get(metric, ()))
        for number, run in enumerate(runs):
            color = colors[number % len(colors)]
            line = dict(color=color, linewidth=2, linestyle=styles[number // len(colors) % len(styles)])
            line |= dict(marker=markers[number % len(markers)], markersize=5, clip_on=False)
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
            _start_at_zero(axes)
            if len(runs) == 1:
                last, best = last_and_best(runs[0], metric)
                if best.value > last.value:
                    when = f'epoch {best.epoch}' if by_epoch else f'iteration {best.iteration}'
                    axes.set_title(f'best {_number(best.value)} at {when}', loc='right', fontsize=10, weight='normal')
        if len(runs) == 1:
            figure.suptitle(runs[0].name, x=0.01, ha='left', fontsize=10, color='0.4')
        else:
            _legend(figure, loss_axes)
        figure.draw_without_rendering()  # lays the panels out, for the heights of the labels
        label_ends(loss_axes, loss_ends)
        for axes in others:
            label_ends(axes, metric_ends)
    return figure


def smooth(values: np.ndarray) -> np.ndarray:
    """Returns a curve's running mean, weighted by a Gaussian a fiftieth of the curve wide; not finite is no value.

    Args:
        values: (N,) values at about equal distances.
    """
    width = max(1.0, len(values) / 50)
    offsets = np.arange(-math.ceil(3 * width), math.ceil(3 * width) + 1)
    kernel = np.exp(-0.5 * (offsets / width) ** 2)
    known = np.isfinite(values)
    sums = np.convolve(np.where(known, values, 0), kernel)[len(offsets) // 2 :][: len(values)]
    weights = np.convolve(known.astype(float), kernel)[len(offsets) // 2 :][: len(values)]
    return np.where(known, sums / np.where(known, weights, 1), np.nan)


def _start_at_zero(axes: Axes) -> None:
    """Begins the y axis at 0 where the curves come near it."""
    bottom, top = axes.dataLim.intervaly
    if 0 <= bottom < top / 2:
        axes.set_ylim(0, top * 1.06)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    columns = max(1, min(len(names), 120 // (max(map(len, names)) + 8)))
    figure.legend(handles, names, loc='outside lower center', ncols=columns, frameon=False)


def label_ends(axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Writes a text beside the end of each curve, right of the axes, the texts clear of one another.

    Args:
        axes: In a figure that is laid out.
        ends: The x, y, color and text of each curve's end; one that is not finite is left out.
    """
    ends = sorted(end for end in ends if math.isfinite(end[1]))
    if not ends:
        return
    ends.sort(key=lambda end: end[1])
    points_per_pixel = 72 / axes.figure.dpi
    heights = [axes.transData.transform(end[:2])[1] * points_per_pixel for end in ends]
    for (_, y, color, text), height, place in zip(ends, heights, spread(heights, gap=13), strict=True):
        axes.annotate(
            text,
            (1, y),
            xycoords=axes.get_yaxis_transform(),
            xytext=(8, place - height),
            textcoords='offset points',
            va='center',
            color=color,
            weight='bold',
            annotation_clip=False,
        )


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Returns the ascending places that are nearest to ``places``, ascending too, and at least ``gap`` apart."""
    # Less i times the gap they need only ascend: isotonic regression, by pooling neighbours that do not.
    pools: list[list[float]] = []
    for i, place in enumerate(places):
        pools.append([place - i * gap])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    level = [float(np.mean(pool)) for pool in pools for _ in pool]
    return [value + i * gap for i, value in enumerate(level)]


def _number(value: float) -> str:
    return f'{value:.1f}' if abs(value) >= 10 else f'{value:.3f}'
