"""Figures from real logs and checkpoints, and one line for wrong input."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope

from pvt_mm.analysis.predictions import Boxes, Example, find_checkpoint, plot_predictions, predict
from pvt_mm.apis.config import load_config
from tests.conftest import ROOT
from tools import plot

CONFIG = str(ROOT / 'configs/demo/retinanet_shapes.py')


def write_log(work_dir, losses, aps, name='20260101_000000'):
    log = work_dir / name / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    lines = [dict(loss=loss, lr=1e-3, epoch=1 + i // 10, iter=i + 1, step=i + 1) for i, loss in enumerate(losses)]
    lines += [{'coco/bbox_mAP': ap, 'step': i + 1} for i, ap in enumerate(aps)]
    log.write_text('\n'.join(map(json.dumps, lines)))


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """The last checkpoint of a work directory."""
    folder = tmp_path_factory.mktemp('run')
    init_default_scope('mmdet')
    model = MODELS.build(load_config(CONFIG).model)
    torch.save({'state_dict': model.state_dict()}, folder / 'epoch_1.pth')
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_1.pth'))
    return str(folder / 'epoch_1.pth')


def test_curves_are_plotted_and_summarised(tmp_path, capsys):
    write_log(tmp_path, np.linspace(2, 1, 30), [0.1, 0.5, 0.4])
    assert plot.main(['curves', str(tmp_path), '--out', str(tmp_path / 'curves.png')]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary['coco/bbox_mAP'] == 0.4
    assert summary['coco/bbox_mAP_best'] == 0.5
    assert cv2.imread(str(tmp_path / 'curves.png')).std() > 5


def test_predictions_are_plotted(tmp_path, checkpoint, shapes, capsys):
    work_dir, out = str(Path(checkpoint).parent), str(tmp_path / 'p.png')
    arguments = ['predictions', CONFIG, work_dir, '--images', '3', '--score-thr', '0', '--out', out]
    assert plot.main([*arguments, '--cfg-options', f'data_root={shapes}']) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary['images'] == 3
    assert summary['ground_truth'] >= 3
    assert summary['predictions'] > 0
    assert cv2.imread(out).std() > 5


def test_scale_is_plotted(tmp_path, capsys):
    assert plot.main(['scale', '--sides', '224', '--out', str(tmp_path / 'scale.png')]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])['gflops']['PVT-S'] == [3.81]
    assert cv2.imread(str(tmp_path / 'scale.png')).std() > 5


def test_accuracy_is_plotted(tmp_path, capsys):
    for suffix in ('png', 'svg'):
        out = str(tmp_path / f'accuracy.{suffix}')
        assert plot.main(['accuracy', '--models', 'semantic_fpn', '--results', str(tmp_path), '--out', out]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])['models']['semantic_fpn/pvt_s_80k']
    assert found == {'params_m': 28.2, 'quoted': 39.8, 'measured': None}
    assert cv2.imread(str(tmp_path / 'accuracy.png')).std() > 5
    assert '</svg>' in (tmp_path / 'accuracy.svg').read_text()


def test_truth_is_the_annotations_and_predictions_are_in_pixels_of_the_file(checkpoint, shapes):
    config = load_config(CONFIG, {'data_root': str(shapes), 'model.test_cfg.score_thr': 0.0})
    examples, classes = predict(config, checkpoint, 6)
    assert classes == ['circle', 'square', 'triangle']
    content = json.loads((shapes / 'annotations/instances_val2017.json').read_text())
    assert sum(len(example.truth.labels) for example in examples) == len(content['annotations'])
    for example in examples:
        assert example.image.shape == (64, 64, 3)  # the model sees 160 x 160
        assert example.predicted.corners.max() <= 64


def test_boxes_above_a_threshold():
    boxes = Boxes(np.arange(12).reshape(3, 4), np.array([0, 1, 2]), np.array([0.2, 0.3, 0.9]))
    assert boxes.above(0.3).labels.tolist() == [1, 2]


@pytest.mark.parametrize(('classes', 'texts'), [(8, ['0.90']), (9, ['a', 'a 0.90'])])
def test_boxes_are_labelled_if_there_are_more_classes_than_colours(classes, texts):
    corners, labels = np.array([[1.0, 1, 9, 9]] * classes), np.arange(classes)
    boxes = Boxes(corners, labels, np.ones(classes))
    predicted = Boxes(corners[:2], labels[:2], np.array([0.9, 0.4]))
    figure = plot_predictions([Example(np.zeros((16, 16, 3)), boxes, predicted)], list('abcdefghi'), 0.5, 'title')
    drawn = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert [text for text in drawn if text.startswith(('a', '0'))] == texts
    assert len(drawn) == (1 if classes == 8 else classes + 1)
    assert bool(figure.legends) == (classes == 8)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['curves', 'gone'], 'gone'),
        (['curves', 'LOG', '--metric', 'mIoU'], 'mIoU'),
        (['curves', 'LOG', '--out', 'curves.bmp'], 'curves.bmp'),
        (['scale', '--sides', '100'], '--sides 100: each must be a multiple of 32'),
        (['accuracy', '--out', 'accuracy.bmp'], 'accuracy.bmp'),
        (['predictions', 'gone.py', 'epoch_1.pth'], 'the config gone.py does not exist'),
        (['predictions', CONFIG, 'gone.pth', '--cfg-options', 'DATA'], 'gone.pth does not exist'),
        (['predictions', CONFIG, 'other.pth', '--cfg-options', 'DATA'], 'other.pth does not match the model'),
        (['predictions', CONFIG, '.', '--cfg-options', 'DATA'], '. has no checkpoint'),
        (['predictions', CONFIG, 'other.pth', '--images', '0'], '--images must be at least 1'),
        (['predictions', CONFIG, 'other.pth', '--cfg-options', 'data_root=gone'], 'the test data is missing'),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(arguments, message, tmp_path, shapes, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_log(tmp_path / 'log', [2.0, 1.0], [0.5])
    torch.save({'a': torch.ones(1)}, 'other.pth')
    swap = {'LOG': 'log', 'DATA': f'data_root={shapes}'}
    assert plot.main([swap.get(argument, argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count('\n') == 1
    assert not list(tmp_path.glob('*.png'))


def test_find_checkpoint_takes_the_last_of_a_work_dir(checkpoint):
    assert find_checkpoint(str(Path(checkpoint).parent)) == find_checkpoint(checkpoint) == checkpoint
