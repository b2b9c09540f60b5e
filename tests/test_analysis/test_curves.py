"""Curves: the scalars in the logs are read and plotted."""

import json
from pathlib import Path

import numpy as np
import pytest

from pvt_mm.analysis.curves import (
    Point,
    Run,
    choose_metric,
    last_and_best,
    plot_curves,
    read_run,
    read_runs,
    smooth,
    spread,
)
from pvt_mm.utils.errors import InputError


def write_log(work_dir: Path, time: str, records: list[dict], resumed: bool = False) -> None:
    folder = work_dir / time / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, records)))
    (folder / 'config.py').write_text(f'resume = {resumed}\n')


def training(first: int, last: int, loss: float) -> list[dict]:
    steps = range(first, last + 1)
    return [dict(loss=loss, epoch=1 + (step - 1) // 10, iter=step, step=step) for step in steps]


def validation(epoch: int, value: float) -> dict:
    return {'coco/bbox_mAP': value, 'step': epoch, 'time': 0.1}


def test_a_resumed_log_continues_from_where_it_resumed(tmp_path):
    write_log(tmp_path, '20260101_000000', [*training(1, 10, 3.0), validation(1, 0.1), *training(11, 15, 2.0)])
    write_log(tmp_path, '20260102_000000', [*training(11, 20, 1.0), validation(2, 0.3)], resumed=True)
    run = read_run(tmp_path)
    assert list(run.loss) == list(range(1, 21))
    assert [run.loss[10], run.loss[11], run.loss[20]] == [3.0, 1.0, 1.0]
    assert [(p.iteration, p.epoch, p.value) for p in run.metrics['coco/bbox_mAP']] == [(10, 1, 0.1), (20, 2, 0.3)]


def test_a_resumed_log_that_begins_with_an_evaluation_repeats_it(tmp_path):
    write_log(tmp_path, '20260101_000000', [*training(1, 10, 3.0), validation(1, 0.1)])
    records = [validation(1, 0.2), *training(11, 20, 1.0), validation(2, 0.3)]
    write_log(tmp_path, '20260102_000000', records, resumed=True)
    write_log(tmp_path, '20260103_000000', [validation(2, 0.4)], resumed=True)  # only the evaluation was left
    run = read_run(tmp_path)
    assert [(p.iteration, p.epoch, p.value) for p in run.metrics['coco/bbox_mAP']] == [(10, 1, 0.2), (20, 2, 0.4)]


def test_evaluations_by_iteration_stay_so_where_a_log_resumes(tmp_path):
    steps = [dict(loss=1.0, iter=step, step=step) for step in range(1, 41)]
    write_log(tmp_path, '20260101_000000', [*steps[:20], {'mIoU': 1.0, 'step': 20}])
    write_log(tmp_path, '20260102_000000', [{'mIoU': 2.0, 'step': 20}, *steps[20:], {'mIoU': 3.0, 'step': 40}], True)
    assert read_run(tmp_path).metrics['mIoU'] == [(20, None, 2.0), (40, None, 3.0)]


def test_a_log_that_did_not_resume_replaces_the_previous_one(tmp_path):
    write_log(tmp_path, '20260101_000000', [*training(1, 20, 3.0), validation(2, 0.1)])
    write_log(tmp_path, '20260102_000000', [*training(1, 10, 1.0), validation(1, 0.2)])
    run = read_run(tmp_path)
    assert run.loss == dict.fromkeys(range(1, 11), 1.0)
    assert [p.value for p in run.metrics['coco/bbox_mAP']] == [0.2]
    write_log(tmp_path, '20260103_000000', training(5, 5, 0.5))  # logs every fifth iteration
    assert read_run(tmp_path).loss == {5: 0.5}


def test_a_partial_last_line_is_ignored_and_any_other_is_an_error(tmp_path):
    log = tmp_path / 'scalars.json'
    lines = [json.dumps(record) for record in training(1, 3, 1.0)]
    log.write_text('\n'.join(lines) + '\n{"loss": 1.')
    assert list(read_run(log).loss) == [1, 2, 3]
    log.write_text('\n'.join([lines[0], 'text', lines[1]]))
    with pytest.raises(InputError, match='line 2 is not a JSON object'):
        read_run(log)
    with pytest.raises(InputError, match='gone does not exist'):
        read_run(tmp_path / 'gone')
    log.write_text('{"step": 1, "mIoU": 3}')
    with pytest.raises(InputError, match='no training loss'):
        read_run(log)


def test_runs_that_share_a_name_are_labelled_by_their_paths(tmp_path):
    for parent in ('a', 'b'):
        write_log(tmp_path / parent / 'run', '20260101_000000', training(1, 2, 1.0))
    write_log(tmp_path / 'c', '20260101_000000', training(1, 2, 1.0))
    paths = [str(tmp_path / 'a/run'), str(tmp_path / 'b/run'), str(tmp_path / 'c')]
    assert [run.name for run in read_runs(paths)] == [*paths[:2], 'c']


def test_metric_and_its_best(tmp_path):
    write_log(tmp_path, '20260101_000000', [*training(1, 30, 1.0), *(validation(e, 0.3 - e / 10) for e in (1, 2, 3))])
    run = read_run(tmp_path)
    assert choose_metric([run]) == 'coco/bbox_mAP'
    last, best = last_and_best(run, 'coco/bbox_mAP')
    assert (last.epoch, best.epoch) == (3, 1)
    with pytest.raises(InputError, match='has no metric mIoU; it has coco/bbox_mAP'):
        choose_metric([run], 'mIoU')
    assert choose_metric([Run('empty', {1: 1.0})]) is None


def test_the_best_error_is_the_lowest():
    run = Run('a', {1: 1.0}, {'accuracy/error1': [Point(1, 1, 60.0), Point(2, 2, 30.0), Point(3, 3, 40.0)]})
    assert last_and_best(run, 'accuracy/error1')[1].value == 30.0


def test_smoothing_keeps_a_level_and_ignores_nan_and_inf():
    assert smooth(np.full(300, 2.5)) == pytest.approx(2.5)
    line = np.arange(300.0)
    assert smooth(line)[50:-50] == pytest.approx(line[50:-50])
    gap = np.array([1.0, np.nan, 1.0, np.inf, 1.0])
    assert np.isnan(smooth(gap)).tolist() == [False, True, False, True, False]
    assert smooth(gap)[[0, 2, 4]] == pytest.approx(1)


def test_labels_are_spread_by_the_gap_and_no_more():
    assert spread([0, 50, 100], gap=10) == pytest.approx([0, 50, 100])
    assert spread([0, 0], gap=10) == pytest.approx([-5, 5])
    assert spread([0, 1, 2, 90], gap=10) == pytest.approx([-9, 1, 11, 90])


def test_the_figure_shows_each_run_and_its_last_value_next_to_the_axes(tmp_path):
    for name, level in (('one', 2.0), ('two', 1.0)):
        records = [*training(1, 30, level), *(validation(epoch, level / 10 * epoch) for epoch in (1, 2, 3))]
        write_log(tmp_path / name, '20260101_000000', records)
    figure = plot_curves(read_runs([tmp_path / 'one', tmp_path / 'two']), 'coco/bbox_mAP')
    loss, metric = figure.axes
    smoothed = [line for line in loss.lines if line.get_label() in ('one', 'two')]
    assert [line.get_ydata()[-1] for line in smoothed] == pytest.approx([2.0, 1.0])
    assert list(metric.lines[0].get_xdata()) == [1, 2, 3]
    assert metric.lines[0].get_ydata() == pytest.approx([0.2, 0.4, 0.6])
    assert sorted(text.get_text() for text in loss.texts) == ['1.000', '2.000']
    assert sorted(text.get_text() for text in metric.texts) == ['0.300', '0.600']
    figure.draw_without_rendering()
    for axes in figure.axes:
        for text in axes.texts:
            box = text.get_window_extent()
            assert axes.bbox.x1 < box.x0 < axes.bbox.x1 + 20
            assert box.x1 <= figure.bbox.x1
