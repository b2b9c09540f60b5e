"""Predictions on the user's images: for every task, on unreadable files, and on videos."""

import errno
import functools
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, MODELS, DefaultScope
from pycocotools import mask

from pvt_mm.analysis.dataset_check import check_datasets
from pvt_mm.analysis.predictor import Predictor
from pvt_mm.apis.config import load_config
from pvt_mm.serving import drawing
from pvt_mm.serving.drawing import MIN_SIDE, draw, place_labels
from pvt_mm.serving.result import Result
from pvt_mm.serving.run_lengths import encode
from pvt_mm.utils.errors import InputError
from tests.conftest import ROOT, TINY_ARCH
from tests.test_datasets.test_image_io import make_formats
from tests.test_tools.test_train_and_test import DETECTOR, MASKS, SEGMENTOR
from tools import demo

CLASSIFIER = """
_base_ = '{root}/configs/demo/classifier_shapes.py'
model = dict(backbone=dict(arch=dict(_delete_=True, **{arch})), head=dict(in_channels=32))
"""
CLASSES = ('circle', 'square', 'triangle')
TASKS = {'boxes': DETECTOR, 'masks': MASKS, 'regions': SEGMENTOR, 'scores': CLASSIFIER}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope='module')
def trained(tmp_path_factory, shapes):
    """Makes config and checkpoint of a task, once; a segmentor and a classifier predict ``square`` everywhere."""

    @functools.cache
    def make(task):
        folder = tmp_path_factory.mktemp(task)
        (folder / 'config.py').write_text(TASKS[task].format(root=ROOT, arch=TINY_ARCH, shapes=shapes))
        config = load_config(str(folder / 'config.py'))
        with DefaultScope.overwrite_default_scope(config.default_scope):
            model = MODELS.build(config.model)
        last = {'scores': 'head.fc', 'regions': 'decode_head.conv_seg'}.get(task)
        if last:
            torch.nn.init.zeros_(model.get_submodule(last).weight)
            model.get_submodule(last).bias.data = torch.tensor([0.0, 2.0, 1.0])
        content = {'state_dict': model.state_dict(), 'meta': {'dataset_meta': {'classes': CLASSES}}}
        torch.save(content, folder / 'epoch_1.pth')
        return str(folder / 'config.py'), str(folder / 'epoch_1.pth')

    return make


@pytest.fixture
def image(shapes) -> Path:
    return next((shapes / 'val2017').iterdir())


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
    images, names = tmp_path / 'images', ['000000000001.jpg', '000000000002.jpg']
    images.mkdir()
    for name in names:
        shutil.copy(shapes / 'val2017' / name, images)
    flags = ['--out', 'drawn', '--score-thr', '0', '--cfg-options', *options]
    assert demo.main([str(images), *trained(task), *flags]) == 0
    assert last_line(capsys) == {'out': 'drawn', 'images': 2, 'skipped': 0}
    assert sorted(path.name for path in (tmp_path / 'drawn').iterdir()) == [*names, 'predictions.json']
    found = json.loads((tmp_path / 'drawn/predictions.json').read_text())['images']
    assert sorted(found) == names
    for name in names:
        drawn, image = (cv2.imread(str(folder / name)) for folder in (tmp_path / 'drawn', images))
        assert min(drawn.shape[:2]) >= MIN_SIDE
        image = cv2.resize(image, drawn.shape[1::-1], interpolation=cv2.INTER_CUBIC).astype(int)
        assert (np.abs(drawn - image).max(-1) > 60).mean() > 0.01
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


def test_an_image_without_predictions_is_unchanged(trained, image):
    config, checkpoint = trained('boxes')
    image = cv2.imread(str(image))
    result = Predictor(load_config(config), checkpoint, score_thr=1.0)(image)
    drawn = result.draw()
    assert result.objects == []
    expected = cv2.resize(image, (512, 512), interpolation=cv2.INTER_CUBIC)  # 8 times 64
    assert np.abs(cv2.resize(drawn, (512, 512)).astype(int) - expected).mean() < 2  # the colours in their order


def test_unreadable_files_are_named_and_skipped(trained, image, tmp_path, capsys):
    images = tmp_path / 'images'
    (images / 'more').mkdir(parents=True)
    shutil.copy(image, images / 'more/complete.jpg')
    (images / 'cut.jpg').write_bytes(image.read_bytes()[:700])
    (images / 'text.png').write_text('not an image')
    cv2.imwrite(str(images / 'bitmap.bmp'), cv2.imread(str(image)))
    for _ in range(2):  # the output of the first run is not an input of the second
        assert demo.main(['images', *trained('scores'), '--out', 'images/drawn']) == 0
        captured = capsys.readouterr()
        assert json.loads(captured.out.splitlines()[-1]) == {'out': 'images/drawn', 'images': 2, 'skipped': 2}
        skipped = [line for line in captured.err.splitlines() if line.startswith('skipped: ')]
        assert len(skipped) == 2
        for name, line in zip(('cut.jpg', 'text.png'), skipped, strict=True):
            assert f'{name} is truncated or not an image' in line
    drawn = sorted(path.relative_to(images / 'drawn').as_posix() for path in (images / 'drawn').rglob('*.*'))
    assert drawn == ['bitmap.bmp.jpg', 'more/complete.jpg', 'predictions.json']


def test_images_that_the_model_cannot_take_are_skipped(trained, image, tmp_path, capsys):
    Path('images').mkdir()
    for width, height in ((2000, 6), (6, 2000), (3000, 1), (1, 1), (5, 5)):
        cv2.imwrite(f'images/{width}x{height}.png', np.full((height, width, 3), 90, np.uint8))
    shutil.copy(image, 'images/ünï 图片.PNG')
    assert demo.main(['images', *trained('boxes'), '--out', 'drawn']) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[-1]) == {'out': 'drawn', 'images': 3, 'skipped': 3}
    skipped = [line for line in captured.err.splitlines() if line.startswith('skipped: ')]
    for name, line in zip(('2000 x 6', '3000 x 1', '6 x 2000'), skipped, strict=True):
        path = f'images/{name.replace(" ", "")}.png'
        assert line.startswith(f'skipped: {path}: {name} pixels are too thin for the test pipeline: its Resize')
    found = json.loads(Path('drawn/predictions.json').read_text())['images']
    assert sorted(found) == ['1x1.png', '5x5.png', 'ünï 图片.PNG']
    assert demo.main(['images/2000x6.png', *trained('boxes'), '--out', 'one']) == 2
    assert 'error: images/2000x6.png: 2000 x 6 pixels are too thin' in capsys.readouterr().err
    # padded to 32 pixels, as a batch of training is
    wide = ['--cfg-options', 'test_dataloader.dataset.pipeline.1.scale=(1333,800)']
    assert demo.main(['images/2000x6.png', *trained('boxes'), '--out', 'one', *wide]) == 0


@pytest.mark.parametrize(
    ('error', 'code'),
    [(RuntimeError('out of\nmemory'), 0), (KeyboardInterrupt(), 130), (OSError(errno.ENOSPC, 'full'), 2)],
)
def test_what_was_done_is_kept_whatever_happens(error, code, trained, shapes, monkeypatch, capsys):
    original = Predictor.__call__

    def fail(self, path):
        if path.stem.endswith('3'):
            raise error
        return original(self, path)

    monkeypatch.setattr(Predictor, '__call__', fail)
    assert demo.main([str(shapes / 'val2017'), *trained('scores'), '--out', 'drawn']) == code
    names = sorted(path.name for path in (shapes / 'val2017').iterdir())
    expected = [name for name in names if '3' not in name] if code == 0 else names[:2]
    assert sorted(json.loads(Path('drawn/predictions.json').read_text())['images']) == expected
    if code == 0:
        assert f'skipped: {shapes}/val2017/{names[2]}: RuntimeError: out of memory' in capsys.readouterr().err


def test_all_tools_read_the_same_pixels(trained, tmp_path, monkeypatch):
    config, checkpoint = trained('scores')
    folders = [tmp_path / 'train' / name for name in CLASSES]
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    for folder in folders:
        folder.mkdir(parents=True)
        cv2.imwrite(str(folder / f'{folder.name}.png'), pixels // (1 + folders.index(folder)))
    for name, content in make_formats(pixels).items():
        (folders[0] / name).write_bytes(content)
    config = load_config(config)
    config.train_dataloader.dataset.update(data_root=str(tmp_path), data_prefix='train')
    config.val_dataloader = None
    with DefaultScope.overwrite_default_scope('mmengine'):
        predictor = Predictor(config, checkpoint)
        config.test_dataloader = None
        (split,) = check_datasets(config)
        dataset = DATASETS.build(config.train_dataloader.dataset)
    unreadable = {fault.text for fault in split.faults if fault.kind == 'unreadable image'}
    assert unreadable
    seen = set()
    monkeypatch.setattr(predictor, '_objects', lambda sample: [])
    for i in range(len(dataset)):
        path = dataset.get_data_info(i)['img_path']
        try:
            result = predictor(path)
        except InputError as error:
            seen.add(str(error))
            continue
        np.testing.assert_array_equal(result.image, dataset.pipeline.transforms[0](dict(img_path=path))['img'])
    assert seen == unreadable


def test_labels_are_placed_apart_and_on_the_canvas():
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 400, (30, 2))
    boxes = np.hstack([corners, corners + rng.integers(30, 200, (30, 2))])
    sizes = [(80, 15)] * 30
    placed = np.array(place_labels(sizes, boxes, (500, 500)))
    assert placed.min() >= 0
    ends = np.add(placed, (80, 15))
    assert ends.max() <= 500
    both = np.minimum(ends[:, None], ends) - np.maximum(placed[:, None], placed)
    overlaps = both.clip(0).prod(-1) - np.diag([80 * 15] * 30)
    assert overlaps.sum() == 0
    # one box, free: above it; at the upper edge: inside of it
    assert place_labels([(80, 15)], [(10, 100, 60, 200)], (500, 500)) == [(10, 85)]
    assert place_labels([(80, 15)], [(10, 5, 60, 200)], (500, 500))[0][1] in (0, 5)


def test_scores_are_written_from_0_to_1(trained, image, monkeypatch):
    texts = []
    monkeypatch.setattr(drawing, '_label', lambda pen, boxes, labels, *_: texts.extend(labels))
    objects = [dict(label='circle', score=0.825, bbox=[1, 2, 30, 40])]
    Result(objects, cv2.imread(str(image)), {'circle': (1, 2, 3)}, 'BGR').draw()
    assert texts == ['circle 0.82']


def test_the_frames_of_a_video(trained, shapes, tmp_path, capsys):
    writer = cv2.VideoWriter('film.mp4', cv2.VideoWriter_fourcc(*'mp4v'), 10, (64, 64))
    for path in sorted((shapes / 'val2017').iterdir()):
        writer.write(cv2.imread(str(path)))
    writer.release()
    assert demo.main(['film.mp4', *trained('scores'), '--out', 'drawn']) == 0
    assert last_line(capsys) == {'out': 'drawn', 'frames': 6, 'skipped': 0}
    assert len(json.loads((tmp_path / 'drawn/predictions.json').read_text())['frames']) == 6
    assert sorted(path.name for path in (tmp_path / 'drawn').iterdir()) == ['film.mp4', 'predictions.json']
    film = cv2.VideoCapture('drawn/film.mp4')
    assert film.get(cv2.CAP_PROP_FRAME_COUNT) == 6
    assert film.get(cv2.CAP_PROP_FPS) == 10
    assert film.read()[1].std() > 5


def test_a_frame_that_fails_is_numbered_and_skipped(trained, image, monkeypatch, tmp_path, capsys):
    frame = cv2.imread(str(image))
    writer = cv2.VideoWriter('film.mp4', cv2.VideoWriter_fourcc(*'mp4v'), 10, (64, 64))
    for _ in range(3):
        writer.write(frame)
    writer.release()
    predict, calls, failing = Predictor.__call__, [], [2]

    def fail_at_times(predictor, frame):
        calls.append(frame)
        if len(calls) in failing:
            raise RuntimeError('out of\nmemory')
        return predict(predictor, frame)

    monkeypatch.setattr(Predictor, '__call__', fail_at_times)
    assert demo.main(['film.mp4', *trained('scores'), '--out', 'drawn']) == 0
    captured = capsys.readouterr()
    assert 'skipped: film.mp4, frame 2: RuntimeError: out of memory\n' in captured.err
    assert json.loads(captured.out.splitlines()[-1]) == {'out': 'drawn', 'frames': 2, 'skipped': 1}
    frames = json.loads((tmp_path / 'drawn/predictions.json').read_text())['frames']
    assert [objects is None for objects in frames] == [False, True, False]
    assert cv2.VideoCapture('drawn/film.mp4').get(cv2.CAP_PROP_FRAME_COUNT) == 3

    calls.clear()
    failing += [1, 3]
    assert demo.main(['film.mp4', *trained('scores'), '--out', 'none']) == 2
    assert 'no frame could be drawn; the first: film.mp4, frame 1: RuntimeError' in capsys.readouterr().err
    assert not list(Path('none').iterdir())


def test_the_best_mask_is_on_top():
    whole = encode(np.ones((500, 500), bool))
    found = [dict(label=label, score=0.5, bbox=[0, 0, 9, 9], mask=whole) for label in ('best', 'worst')]
    drawn = draw(np.full((500, 500, 3), 100, np.uint8), found, {'best': (255, 0, 0), 'worst': (0, 0, 255)})
    red, green, blue = drawn[400, 400].tolist()
    assert (red, green, blue) == (177, 50, 50)


@pytest.mark.parametrize('task', TASKS)
def test_names_of_another_number_of_classes_are_refused(task, trained, image, capsys):
    config, checkpoint = trained(task)
    content = torch.load(checkpoint, weights_only=True)
    content['meta']['dataset_meta']['classes'] = ('circle', 'square')
    torch.save(content, 'epoch_1.pth')
    Path('unnamed.py').write_text(
        f"_base_ = '{config}'\ntest_dataloader = dict(dataset=dict(metainfo=dict(classes=('a', 'b'))))\n"
    )
    arguments = [str(image), 'unnamed.py', 'epoch_1.pth', '--out', 'drawn']
    assert demo.main(arguments) == 2
    assert 'does not name the 3 classes, but 2 others: set test_dataloader' in capsys.readouterr().err
    assert not Path('drawn').exists()
    if task in ('boxes', 'scores'):  # the fix in the message works
        names = "test_dataloader.dataset.metainfo.classes=('x','y','z')"
        assert demo.main([*arguments, '--cfg-options', names]) == 0


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['gone', 'CONFIG', 'CHECKPOINT'], 'gone does not exist'),
        (['empty', 'CONFIG', 'CHECKPOINT'], 'empty has no image'),
        (['a.jpg', 'CONFIG', 'CHECKPOINT'], 'a.jpg is truncated or not an image'),
        (['a.mp4', 'CONFIG', 'CHECKPOINT'], 'a.mp4 is truncated or not a video'),
        (['a.jpg', 'CONFIG', 'gone.pth'], 'gone.pth does not exist'),
        (['a.jpg', 'CONFIG', 'other.pth'], 'other.pth does not match the model'),
        (['a.jpg', 'CONFIG', 'CHECKPOINT', '--out', '.'], '--out . is the folder of the images'),
        (['a.jpg', 'CONFIG', 'CHECKPOINT', '--out', 'a.mp4'], '--out a.mp4 is a file'),
        (['a.jpg', 'CONFIG', 'CHECKPOINT', '--score-thr', '2'], '--score-thr 2.0: it must be from 0 to 1'),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(arguments, message, trained, tmp_path, capsys):
    replaced = dict(zip(('CONFIG', 'CHECKPOINT'), trained('scores'), strict=True))
    torch.save({'a': torch.ones(1)}, 'other.pth')
    (tmp_path / 'empty').mkdir()
    for name in ('a.jpg', 'a.mp4'):
        (tmp_path / name).write_text('not an image')
    before = sorted(tmp_path.rglob('*'))
    assert demo.main([replaced.get(argument, argument) for argument in arguments]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error:')]
    assert len(error) == 1
    assert message in error[0]
    assert not {path for path in set(tmp_path.rglob('*')) - set(before) if path.is_file()}
