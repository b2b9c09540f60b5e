"""The report of a sweep: means and standard deviations over seeds, the best in bold, the plot, missing trials."""

import csv
import json

import pytest

from pvt_mm.sweep import report
from pvt_mm.sweep.spec import Sweep, Trial
from pvt_mm.sweep.trials import Status

VALUES = dict(pvt_s=(0.402, 0.406), r50=(0.363, 0.361), r18=(0.318, None))


@pytest.fixture
def sweep() -> Sweep:
    trials = tuple(Trial(name, f'{name}.py', (), seed, 12) for name in VALUES for seed in (0, 1))
    return Sweep('backbones', 'Backbones', 'coco/bbox_mAP', 'greater', trials)


def named(values: dict) -> dict[str, float | None]:
    return {f'{name}-seed{seed}': value for name, found in values.items() for seed, value in enumerate(found)}


def test_means_and_standard_deviations(sweep):
    results = report.collect(sweep, named(VALUES))
    assert [result.mean for result in results] == pytest.approx([0.404, 0.362, 0.318])
    assert results[0].spread == pytest.approx(0.002 * 2**0.5)  # two values have one degree of freedom
    assert results[2].spread is None
    assert [str(result) for result in results] == ['0.4040 ± 0.0028', '0.3620 ± 0.0014', '0.3180']
    assert str(report.Result('fpn', (39.8, 40.2), 2)) == '40.00 ± 0.28'
    assert report.find_best(results, 'greater').setting == 'pvt_s'
    assert report.find_best(results, 'less').setting == 'r50'  # a seed of r18 is missing
    assert report.find_best(results[2:], 'less').setting == 'r18'
    nothing = report.collect(sweep, {'pvt_s-seed0': float('nan')})
    assert report.find_best(nothing, 'greater') is None


def test_markdown_has_the_best_in_bold_and_lists_missing_trials(sweep):
    lines = report.to_markdown(sweep, report.collect(sweep, named(VALUES)), {'r18-seed1': 'failed'}).splitlines()
    assert lines[0] == '# Backbones'
    assert '| **pvt_s** | **0.4040 ± 0.0028** | **2 of 2** |' in lines
    assert '| r18 | 0.3180 | 1 of 2 |' in lines
    assert sum('**' in line for line in lines) == 1
    assert lines[-2:] == ['', '- r18-seed1: failed']


def test_the_plot_has_a_row_for_each_setting_and_the_best_in_another_colour(sweep):
    axes = report.plot(sweep, report.collect(sweep, named(VALUES))).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(VALUES)
    means = {line.get_ydata()[0]: line for line in axes.lines if line.get_marker() == 'o'}
    assert [means[row].get_xdata()[0] for row in range(3)] == pytest.approx([0.404, 0.362, 0.318])
    colors = [means[row].get_color() for row in range(3)]
    assert colors[1] == colors[2] != colors[0]


def test_a_run_without_its_last_validation_has_no_result(sweep, tmp_path):
    for trial, epochs in zip(sweep.trials[:2], (12, 11), strict=True):  # 11: interrupted after the 12th's checkpoint
        log = tmp_path / trial.name / '20260101_000000/vis_data/scalars.json'
        log.parent.mkdir(parents=True)
        lines = [dict(iter=12, epoch=12, loss=1.0, step=12), {'coco/bbox_mAP': 0.4, 'step': epochs}]
        log.write_text('\n'.join(json.dumps(line) for line in lines))
    results = report.write_report(sweep, {trial: Status('finished') for trial in sweep.trials[:2]}, tmp_path)
    assert results['means'] == {'pvt_s': 0.4}
    text = (tmp_path / 'sweep.md').read_text()
    assert '| **pvt_s** | **0.4000** | **1 of 2** |' in text
    assert '- pvt_s-seed1: finished, but interrupted before its last validation: run tools/test.py' in text


def test_the_last_validation_counts_and_nan_is_listed(sweep, tmp_path):
    runs = ([0.5, 0.4], [0.5, float('nan')], [0.3, 0.3], [0.3, 0.2])  # two seeds of two settings
    for trial, values in zip(sweep.trials, runs, strict=False):
        log = tmp_path / trial.name / '20260101_000000/vis_data/scalars.json'
        log.parent.mkdir(parents=True)
        lines = []
        for epoch, value in zip((11, 12), values, strict=True):
            lines += [dict(iter=epoch, epoch=epoch, loss=1.0, step=epoch), {'coco/bbox_mAP': value, 'step': epoch}]
        log.write_text('\n'.join(json.dumps(line) for line in lines))
    results = report.write_report(sweep, {trial: Status('finished') for trial in sweep.trials[:4]}, tmp_path)
    assert results['means'] == pytest.approx({'pvt_s': 0.4, 'r50': 0.25})
    assert results['best'] == 'r50'  # it has both seeds
    assert '- pvt_s-seed1: finished, but its last coco/bbox_mAP is nan' in (tmp_path / 'sweep.md').read_text()
    with open(tmp_path / 'sweep.csv') as file:
        assert [row['best coco/bbox_mAP'] for row in csv.DictReader(file)] == ['0.5', '0.5', '0.3', '0.3']


def test_report_without_finished_trials(sweep, tmp_path):
    results = report.write_report(sweep, {trial: Status('new') for trial in sweep.trials}, tmp_path / 'out')
    assert results == {'metric': 'coco/bbox_mAP', 'best': None, 'means': {}}
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['sweep.csv', 'sweep.md']
    with open(tmp_path / 'out/sweep.csv') as file:
        assert [row['trial'] for row in csv.DictReader(file)] == [trial.name for trial in sweep.trials]
