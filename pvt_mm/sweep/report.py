"""The report of a sweep: its trials as CSV, and means over seeds with standard deviations as Markdown and as a plot."""

import contextlib
import csv
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from pvt_mm.analysis.curves import METRICS, read_run
from pvt_mm.analysis.figures import OKABE_ITO, dress_rows, new_figure, save_figure
from pvt_mm.sweep.spec import Sweep, Trial
from pvt_mm.sweep.trials import Status
from pvt_mm.utils.errors import InputError
from pvt_mm.utils.files import atomic_write, read_json


@dataclass(frozen=True)
class Result:
    """The results of a setting: the last metric of each of its finished trials, out of ``seeds`` trials."""

    setting: str
    values: tuple[float, ...]
    seeds: int

    @property
    def mean(self) -> float:
        """The mean over seeds; NaN without values."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def spread(self) -> float | None:
        """The sample standard deviation over seeds; None with fewer than two values."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        digits = 4 if abs(self.mean) < 1 else 2  # a fraction or a percentage
        mean = f'{self.mean:.{digits}f}' if self.values else ''
        return mean if self.spread is None else f'{mean} ± {self.spread:.{digits}f}'


def write_report(sweep: Sweep, statuses: dict[Trial, Status], folder: Path) -> dict:
    """Writes ``sweep.csv``, ``sweep.md`` and, if there are results, ``sweep.png`` into a folder.

    Only finished trials count. A trial's result is that of its last validation, not of its best, as in the paper.

    Returns:
        The name of the metric, the name of the best setting, and the mean of each setting that has one.
    """
    rows = [_row(sweep, trial, status, folder / trial.name) for trial, status in statuses.items()]
    results = collect(sweep, {row['trial']: row[sweep.metric] for row in rows if row['state'] == 'finished'})
    missing = {}
    for row in rows:
        value = row[sweep.metric]
        if row['state'] != 'finished':
            missing[row['trial']] = row['state']
        elif value is None and row[f'best {sweep.metric}'] is not None:
            missing[row['trial']] = 'finished, but interrupted before its last validation: run tools/test.py'
        elif value is None:
            missing[row['trial']] = f'finished, but the log has no metric {sweep.metric}'
        elif not math.isfinite(value):
            missing[row['trial']] = f'finished, but its last {sweep.metric} is {value}'
    best = find_best(results, sweep.rule)
    with atomic_write(folder / 'sweep.csv') as temporary, open(temporary, 'w', newline='') as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with atomic_write(folder / 'sweep.md') as temporary:
        temporary.write_text(to_markdown(sweep, results, missing), encoding='utf-8')
    if best:
        save_figure(plot(sweep, results), folder / 'sweep.png')
    means = {result.setting: result.mean for result in results if result.values}
    return {'metric': sweep.metric, 'best': best.setting if best else None, 'means': means}


def _row(sweep: Sweep, trial: Trial, status: Status, folder: Path) -> dict:
    points = []
    with contextlib.suppress(InputError):  # there is no log yet
        points = read_run(folder).metrics.get(sweep.metric, [])
    finite = [point.value for point in points if math.isfinite(point.value)]
    # A training that was interrupted between its last checkpoint and its last validation cannot be resumed.
    has_ended = points and (status.state != 'finished' or points[-1].epoch in (None, trial.epochs))
    return {
        'trial': trial.name,
        'setting': trial.setting,
        'config': trial.config,
        'options': ' '.join(trial.options),
        'seed': trial.seed,
        'state': status.state,
        'progress': status.progress,
        sweep.metric: points[-1].value if has_ended else None,
        f'best {sweep.metric}': (max if sweep.rule == 'greater' else min)(finite, default=None),
        'seconds': read_json(folder / 'outcome.json').get('seconds'),
    }


def collect(sweep: Sweep, values: dict[str, float | None]) -> list[Result]:
    """Groups the values of trials, given by name, by setting, without NaN and Inf."""
    groups: dict[str, list[float]] = {}
    for trial in sweep.trials:
        value = values.get(trial.name)
        groups.setdefault(trial.setting, []).append(math.nan if value is None else value)
    return [Result(name, tuple(filter(math.isfinite, found)), len(found)) for name, found in groups.items()]


def find_best(results: list[Result], rule: str) -> Result | None:
    """Returns the result with the best mean, if possible among those with values for all seeds; None without values."""
    choose = max if rule == 'greater' else min
    partial = [result for result in results if result.values]
    complete = [result for result in partial if len(result.values) == result.seeds]
    return choose(complete or partial, key=lambda result: result.mean, default=None)


def to_markdown(sweep: Sweep, results: list[Result], missing: dict[str, str]) -> str:
    """Returns the report: a table of the settings, the best in bold, and a list of missing trials with reasons."""
    best = find_best(results, sweep.rule)
    lines = [
        f'# {sweep.title}',
        '',
        f'{sweep.metric} of the last validation, mean ± standard deviation over seeds. The best is bold.',
        '',
        f'| | {sweep.metric} | seeds |',
        '| --- | ---: | ---: |',
    ]
    for result in results:
        cells = [result.setting, str(result), f'{len(result.values)} of {result.seeds}']
        cells = [f'**{cell}**' if result is best and cell else cell for cell in cells]
        lines.append(f'| {" | ".join(cells)} |')
    reasons = [f'- {name}: {reason}' for name, reason in missing.items()]
    return '\n'.join([*lines, *(['', 'Missing:', '', *reasons] if reasons else []), ''])


def plot(sweep: Sweep, results: list[Result]) -> Figure:
    """Plots a row for each setting: mean, standard deviation as a bar, seeds as ticks; the best in another colour."""
    best = find_best(results, sweep.rule)
    with new_figure(8, 1.5 + 0.42 * len(results)) as (figure, axes):
        metric = METRICS.get(sweep.metric, sweep.metric)
        if any(result.spread is not None for result in results):
            metric = f'{metric}, mean ± standard deviation over seeds'
        figure.suptitle(sweep.title, x=0.01, ha='left', fontsize=13, weight='bold')
        dress_rows(axes, '', metric, [result.setting for result in results])
        label = dict(transform=axes.get_yaxis_transform(), va='center')  # to the right of the axes
        for row, result in enumerate(results):
            color = OKABE_ITO['vermilion' if result is best else 'blue']
            axes.axhline(row, color='0.94', linewidth=0.8, zorder=0)
            if not result.values:
                axes.text(1.02, row, 'no result', color='0.5', **label)
                continue
            if result.spread is not None:
                ends = (result.mean - result.spread, result.mean + result.spread)
                axes.plot(ends, (row, row), color=color, linewidth=6, alpha=0.35, solid_capstyle='round')
                rows = [row] * len(result.values)
                axes.plot(result.values, rows, '|', color=color, markersize=11, markeredgewidth=1.5)
            axes.plot(result.mean, row, 'o', color=color, markersize=8, markeredgecolor='white')
            axes.text(1.02, row, str(result), color=color, weight='bold' if result is best else 'normal', **label)
        if best:
            axes.get_yticklabels()[results.index(best)].set(weight='bold', color=OKABE_ITO['vermilion'])
        axes.margins(x=0.06)
    return figure
