"""Predictions on one's own pictures: of every task, on files that cannot be read, and on videos."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from pycocotools import mask

from pvt_mm.analysis.demo import LEAST_SIDE, Predictor, run_lengths
from pvt_mm.engine.run import load_config
from tests.conftest import ROOT, TINY_ARCH
from tests.test_tools.test_train_and_test import CONFIG, MASKS, SEGMENTOR
from tools import demo

CLASSIFIER = """
_base_ = '{root}/configs/demo/classifier_shapes.py'
model = dict(backbone=dict(arch=dict(_delete_=True, **{arch})), head=dict(in_channels=32))
"""
CLASSES = ('circle', 'square', 'triangle')
TASKS = {'boxes': CONFIG, 'masks': MASKS, 'regions': SEGMENTOR, 'scores': CLASSIFIER}


@pytest.fixture
def trained(tmp_path, monkeypatch, shapes):
    """Makes the config and the checkpoint of a task; a segmentor and a classifier predict ``square`` everywhere."""
    monkeypatch.chdir(tmp_path)

    def make(task):
        (tmp_path / 'config.py').write_text(TASKS[task].format(root=ROOT, arch=TINY_ARCH, shapes=shapes))
        config = load_config('config.py')
        with DefaultScope.overwrite_default_scope(config.default_scope):
            model = MODELS.build(config.model)
        if task == 'scores':
            torch.nn.init.zeros_(model.head.fc.weight)
            model.head.fc.bias.data = torch.tensor([0.0, 2.0, 1.0])
        if task == 'regions':
            torch.nn.init.zeros_(model.decode_head.conv_seg.weight)
            model.decode_head.conv_seg.bias.data = torch.tensor([0.0, 2.0, 1.0])
        torch.save({'state_dict': model.state_dict(), 'meta': {'dataset_meta': {'classes': CLASSES}}}, 'epoch_1.pth')
        return 'config.py', 'epoch_1.pth'

    return make


def last_line(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize('task', TASKS)
def test_every_task_is_drawn_and_written(task, trained, shapes, tmp_path, capsys):
    options = {
        'boxes': ['model.test_cfg.score_thr=0.0', 'model.test_cfg.max_per_img=9'],
        'masks': [
            'model.test_cfg.rpn.max_per_img=20',
            'model.test_cfg.rcnn.score_thr=0.0',
            'model.test_cfg.rcnn.max_per_img=5',
            'test_dataloader.dataset.pipeline.1.scale=(128,128)',
        ],
        'regions': ['test_dataloader.dataset.pipeline.1.scale=(256,64)'],
        'scores': ['model.head.label_smoothing=0.0'],
    }[task]
    pictures, names = tmp_path / 'pictures', ['000000000001.jpg', '000000000002.jpg']
    pictures.mkdir()
    for name in names:
        shutil.copy(shapes / 'val2017' / name, pictures)
    flags = ['--out', 'drawn', '--score-thr', '0', '--cfg-options', *options]
    assert demo.main([str(pictures), *trained(task), *flags]) == 0
    assert last_line(capsys) == {'out': 'drawn', 'pictures': 2, 'left_out': 0}
    assert sorted(path.name for path in (tmp_path / 'drawn').iterdir()) == [*names, 'predictions.json']
    found = json.loads((tmp_path / 'drawn/predictions.json').read_text())['pictures']
    assert sorted(found) == names
    for name in names:
        drawn, picture = (cv2.imread(str(folder / name)) for folder in (tmp_path / 'drawn', pictures))
        assert min(drawn.shape[:2]) >= LEAST_SIDE
        picture = cv2.resize(picture, drawn.shape[1::-1], interpolation=cv2.INTER_CUBIC).astype(int)
        assert (np.abs(drawn - picture).max(-1) > 60).mean() > 0.01
        if task == 'scores':
            expected = np.exp([2, 1, 0]) / np.exp([2, 1, 0]).sum()
            assert [one['label'] for one in found[name]] == ['square', 'triangle', 'circle']
            np.testing.assert_allclose([one['score'] for one in found[name]], expected, atol=1e-4)
        elif task == 'regions':
            (whole,) = found[name]
            assert (whole['label'], whole['share']) == ('square', 1.0)
            assert mask.decode(whole['mask']).shape == (64, 64)
            assert mask.decode(whole['mask']).all()
        else:
            scores = [one['score'] for one in found[name]]
            assert scores
            assert scores == sorted(scores, reverse=True)
            assert all(one['label'] in CLASSES for one in found[name])
            boxes = np.array([one['bbox'] for one in found[name]])
            assert boxes.min() >= 0
            assert 32 < boxes.max() <= 64  # pixels of the file, not of what the model sees
        if task == 'masks':
            assert all(mask.decode(one['mask']).shape == (64, 64) for one in found[name])


def test_a_picture_without_predictions_is_itself(trained, shapes, tmp_path):
    config, checkpoint = trained('boxes')
    picture = cv2.imread(str(next((shapes / 'val2017').iterdir())))
    drawn, found = Predictor(load_config(config), checkpoint, score_thr=1.0)(picture)
    assert found == []
    expected = cv2.resize(picture, (512, 512), interpolation=cv2.INTER_CUBIC)  # 8 times 64
    assert np.abs(cv2.resize(drawn, (512, 512)).astype(int) - expected).mean() < 2  # the colours in their order


def test_run_lengths_are_cocos_and_json():
    drawn = np.random.default_rng(0).random((5, 7)) > 0.5
    coded = json.loads(json.dumps(run_lengths(drawn)))
    np.testing.assert_array_equal(mask.decode(coded), drawn)


def test_what_cannot_be_read_is_named_and_the_others_go_on(trained, shapes, tmp_path, capsys):
    pictures = tmp_path / 'pictures'
    (pictures / 'more').mkdir(parents=True)
    whole = next((shapes / 'val2017').iterdir())
    shutil.copy(whole, pictures / 'more/whole.jpg')
    (pictures / 'cut.jpg').write_bytes(whole.read_bytes()[:700])
    (pictures / 'text.png').write_text('no picture')
    cv2.imwrite(str(pictures / 'bitmap.bmp'), cv2.imread(str(whole)))
    task = trained('scores')
    for _ in range(2):  # what was drawn is no picture of the second time
        assert demo.main(['pictures', *task, '--out', 'pictures/drawn']) == 0
        captured = capsys.readouterr()
        assert json.loads(captured.out.splitlines()[-1])['pictures'] == 2
        left_out = [line for line in captured.err.splitlines() if line.startswith('left out: ')]
        assert len(left_out) == 2
        for name, line in zip(('cut.jpg', 'text.png'), left_out, strict=True):
            assert f'{name} is no picture that can be read' in line
    drawn = sorted(path.relative_to(pictures / 'drawn').as_posix() for path in (pictures / 'drawn').rglob('*.*'))
    assert drawn == ['bitmap.bmp.jpg', 'more/whole.jpg', 'predictions.json']


def test_the_frames_of_a_video(trained, shapes, tmp_path, capsys):
    task = trained('scores')
    writer = cv2.VideoWriter('film.mp4', cv2.VideoWriter_fourcc(*'mp4v'), 10, (64, 64))
    for path in sorted((shapes / 'val2017').iterdir()):
        writer.write(cv2.imread(str(path)))
    writer.release()
    assert demo.main(['film.mp4', *task, '--out', 'drawn']) == 0
    assert last_line(capsys) == {'out': 'drawn', 'frames': 6, 'left_out': 0}
    assert len(json.loads((tmp_path / 'drawn/predictions.json').read_text())['frames']) == 6
    assert sorted(path.name for path in (tmp_path / 'drawn').iterdir()) == ['film.mp4', 'predictions.json']
    film = cv2.VideoCapture('drawn/film.mp4')
    assert film.get(cv2.CAP_PROP_FRAME_COUNT) == 6
    assert film.get(cv2.CAP_PROP_FPS) == 10
    assert film.read()[1].std() > 5


@pytest.mark.parametrize('task', TASKS)
def test_names_of_another_number_of_classes_are_refused(task, trained, shapes, tmp_path, capsys):
    config, checkpoint = trained(task)
    content = torch.load(checkpoint, weights_only=True)
    content['meta']['dataset_meta']['classes'] = ('circle', 'square')
    torch.save(content, checkpoint)
    Path('unnamed.py').write_text(
        f"_base_ = '{config}'\ntest_dataloader = dict(dataset=dict(metainfo=dict(classes=('a', 'b'))))\n"
    )
    image = str(next((shapes / 'val2017').iterdir()))
    assert demo.main([image, 'unnamed.py', checkpoint, '--out', 'drawn']) == 2
    assert 'does not name the 3 classes, but 2 others: set test_dataloader' in capsys.readouterr().err
    assert not Path('drawn').exists()
    # What it says is what helps.
    names = "test_dataloader.dataset.metainfo.classes=('x','y','z')"
    assert demo.main([image, 'unnamed.py', checkpoint, '--out', 'drawn', '--cfg-options', names]) == 0


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['gone', 'CONFIG', 'epoch_1.pth'], 'gone does not exist'),
        (['empty', 'CONFIG', 'epoch_1.pth'], 'empty holds no picture'),
        (['a.jpg', 'CONFIG', 'epoch_1.pth'], 'a.jpg is no picture that can be read'),
        (['a.mp4', 'CONFIG', 'epoch_1.pth'], 'a.mp4 is no video that can be read'),
        (['a.jpg', 'CONFIG', 'gone.pth'], 'gone.pth does not exist'),
        (['a.jpg', 'CONFIG', 'other.pth'], 'other.pth is of another model'),
        (['a.jpg', 'CONFIG', 'epoch_1.pth', '--out', '.'], '--out . is the folder of the pictures'),
        (['a.jpg', 'CONFIG', 'epoch_1.pth', '--out', 'a.mp4'], '--out a.mp4 is a file'),
        (['a.jpg', 'CONFIG', 'epoch_1.pth', '--score-thr', '2'], '--score-thr 2.0 is not between 0 and 1'),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(arguments, message, trained, tmp_path, capsys):
    config, _ = trained('scores')
    torch.save({'a': torch.ones(1)}, 'other.pth')
    (tmp_path / 'empty').mkdir()
    for name in ('a.jpg', 'a.mp4'):
        (tmp_path / name).write_text('no picture')
    before = sorted(tmp_path.rglob('*'))
    assert demo.main([config if argument == 'CONFIG' else argument for argument in arguments]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error:')]
    assert len(error) == 1
    assert message in error[0]
    assert not {path for path in set(tmp_path.rglob('*')) - set(before) if path.is_file()}
