"""What came of a sweep: its trials in a csv, means and spreads over seeds in Markdown, and a picture of these."""

import contextlib
import csv
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from pvt_mm.analysis.curves import METRICS, read_run
from pvt_mm.analysis.figures import OKABE_ITO, STYLE, dress, save_figure
from pvt_mm.errors import InputError
from pvt_mm.files import read_json, whole_file
from pvt_mm.sweep.spec import Sweep, Trial
from pvt_mm.sweep.trials import Status


@dataclass(frozen=True)
class Result:
    """A setting's results: the last metric of each of its finished trials, of ``seeds`` in all."""

    setting: str
    values: tuple[float, ...]
    seeds: int

    @property
    def mean(self) -> float:
        """The mean over seeds; not a number where there is no value."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def spread(self) -> float | None:
        """The sample standard deviation over seeds, if there are two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        digits = 4 if abs(self.mean) < 1 else 2  # a fraction, or per cent
        mean = f'{self.mean:.{digits}f}' if self.values else ''
        return mean if self.spread is None else f'{mean} ± {self.spread:.{digits}f}'


def write_report(sweep: Sweep, statuses: dict[Trial, Status], folder: Path) -> dict:
    """Writes ``sweep.csv``, ``sweep.md`` and, where anything has a result, ``sweep.png`` into a folder.

    Only finished trials count. A trial's result is its last validation's, not its best one's, as in the paper.

    Returns:
        The best setting's name and mean, and the mean of each setting that has one.

    Raises:
        InputError: A file cannot be written.
    """
    rows = [_row(sweep, trial, status, folder / trial.name) for trial, status in statuses.items()]
    results = collect(sweep, {row['trial']: row[sweep.metric] for row in rows if row['state'] == 'finished'})
    missing = {row['trial']: row['state'] for row in rows if row['state'] != 'finished'}
    for row in [row for row in rows if row['state'] == 'finished']:
        value = row[sweep.metric]
        if value is not None and not math.isfinite(value):
            missing[row['trial']] = f'finished, and its last {sweep.metric} is {value}'
        if value is None:
            cut_off = row[f'best {sweep.metric}'] is not None
            why = 'but cut off before its last validation: tools/test.py has its result' if cut_off else None
            missing[row['trial']] = f'finished, {why or f"and no {sweep.metric} was logged: is that the name?"}'
    best = find_best(results, sweep.rule)
    try:
        with whole_file(folder / 'sweep.csv') as beside, open(beside, 'w', newline='') as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        with whole_file(folder / 'sweep.md') as beside:
            beside.write_text(to_markdown(sweep, results, missing), encoding='utf-8')
    except OSError as error:
        raise InputError(f'the report in {folder} cannot be written: {error.strerror}') from None
    if best:
        save_figure(plot(sweep, results), folder / 'sweep.png')
    means = {result.setting: result.mean for result in results if result.values}
    return {'metric': sweep.metric, 'best': best.setting if best else None, 'means': means}


def _row(sweep: Sweep, trial: Trial, status: Status, folder: Path) -> dict:
    last = best = None
    with contextlib.suppress(InputError):  # nothing is logged yet
        points = read_run(folder).metrics.get(sweep.metric, ())
        finite = [point.value for point in points if math.isfinite(point.value)]
        if points:
            best = (max if sweep.rule == 'greater' else min)(finite, default=None)
            # A run that was cut off between its last checkpoint and its last validation has nothing left to resume.
            ended = status.state != 'finished' or points[-1].epoch in (None, trial.epochs)
            last = points[-1].value if ended else None
    return {
        'trial': trial.name,
        'setting': trial.setting,
        'config': trial.config,
        'options': ' '.join(trial.options),
        'seed': trial.seed,
        'state': status.state,
        'progress': status.progress,
        sweep.metric: last,
        f'best {sweep.metric}': best,
        'seconds': read_json(folder / 'outcome.json').get('seconds'),
    }


def collect(sweep: Sweep, values: dict[str, float | None]) -> list[Result]:
    """Groups the values of trials, by name, by setting; what is missing or not finite has no value."""
    results = []
    for setting in dict.fromkeys(trial.setting for trial in sweep.trials):
        trials = [trial for trial in sweep.trials if trial.setting == setting]
        found = [values.get(trial.name) for trial in trials]
        finite = tuple(value for value in found if value is not None and math.isfinite(value))
        results.append(Result(setting, finite, len(trials)))
    return results


def find_best(results: list[Result], rule: str) -> Result | None:
    """Returns the result of the best mean, of those of all seeds if there are any; None where nothing has a value."""
    choose = max if rule == 'greater' else min
    some = [result for result in results if result.values]
    whole = [result for result in some if len(result.values) == result.seeds]
    return choose(whole or some, key=lambda result: result.mean, default=None)


def to_markdown(sweep: Sweep, results: list[Result], missing: dict[str, str]) -> str:
    """Returns the report: a row for each setting, the best in bold, and the missing trials with the reason."""
    best = find_best(results, sweep.rule)
    lines = [
        f'# {sweep.title}',
        '',
        f'{sweep.metric} of the last validation: mean ± standard deviation over seeds. The best is bold.',
        '',
        f'| | {sweep.metric} | seeds |',
        '| --- | ---: | ---: |',
    ]
    for result in results:
        cells = [result.setting, str(result), f'{len(result.values)} of {result.seeds}']
        cells = [f'**{cell}**' if result is best and cell else cell for cell in cells]
        lines.append(f'| {" | ".join(cells)} |')
    reasons = [f'- {name}: {reason}' for name, reason in missing.items()]
    return '\n'.join([*lines, *(['', 'Not in it:', '', *reasons] if reasons else []), ''])


def plot(sweep: Sweep, results: list[Result]) -> Figure:
    """Draws each setting's mean, its spread as a bar and its seeds as ticks, a row each, the best in another colour."""
    best = find_best(results, sweep.rule)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 1.5 + 0.42 * len(results)), layout='constrained')
        axes = figure.subplots()
        label = METRICS.get(sweep.metric, sweep.metric)
        spread = any(result.spread is not None for result in results)
        figure.suptitle(sweep.title, x=0.01, ha='left', fontsize=13, weight='bold')
        dress(axes, '', f'{label}, mean ± standard deviation over seeds' if spread else label, '')
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(nbins=7))
        axes.grid(visible=False, axis='y')
        axes.grid(axis='x', color='0.9')
        axes.spines['left'].set_visible(False)
        for place, result in enumerate(results):
            color = OKABE_ITO['vermilion' if result is best else 'blue']
            axes.axhline(place, color='0.94', linewidth=0.8, zorder=0)
            if not result.values:
                axes.text(1.02, place, 'no result', transform=axes.get_yaxis_transform(), va='center', color='0.5')
                continue
            if result.spread is not None:
                ends = (result.mean - result.spread, result.mean + result.spread)
                axes.plot(ends, (place, place), color=color, linewidth=6, alpha=0.35, solid_capstyle='round')
                axes.plot(
                    result.values, [place] * len(result.values), '|', color=color, markersize=11, markeredgewidth=1.5
                )
            axes.plot(result.mean, place, 'o', color=color, markersize=8, markeredgecolor='white')
            weight = 'bold' if result is best else 'normal'
            axes.text(
                1.02, place, str(result), transform=axes.get_yaxis_transform(), va='center', color=color, weight=weight
            )
        axes.set_yticks(range(len(results)), [result.setting for result in results], fontsize=11, color='0.15')
        if best:
            axes.get_yticklabels()[results.index(best)].set(weight='bold', color=OKABE_ITO['vermilion'])
        axes.set_ylim(len(results) - 0.4, -0.6)
        axes.margins(x=0.06)
    return figure
