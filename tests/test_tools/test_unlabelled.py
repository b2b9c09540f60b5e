"""tools/test.py on data without ground truth: image lists, images without label maps; and what it prints."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from pvt_mm.apis import run_config
from pvt_mm.apis.config import load_config
from tests.conftest import ROOT, TINY_ARCH
from tests.test_tools.test_train_and_test import DETECTOR, SEGMENTOR
from tools import test as test_tool

LIST = 'annotations/instances_val2017.json'


@pytest.fixture
def data(shapes, tmp_path, monkeypatch) -> Path:
    """Configs and checkpoints of models with random weights, and a copy of the data to take things from."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(shapes, 'data', ignore=shutil.ignore_patterns('classification', 'training', 'train2017'))
    for name, text in dict(detector=DETECTOR, segmentor=SEGMENTOR).items():
        Path(f'{name}.py').write_text(text.format(root=ROOT, arch=TINY_ARCH))
        config = load_config(f'{name}.py')
        with DefaultScope.overwrite_default_scope(config.default_scope):
            torch.save({'state_dict': MODELS.build(config.model).state_dict()}, f'{name}.pth')
    return tmp_path / 'data'


def outcome(name: str, *arguments: str) -> int:
    return test_tool.main([f'{name}.py', f'{name}.pth', '--work-dir', 'work', *arguments])


def the_error(capsys) -> str:
    """Returns the one line with which a tool ended; warnings of libraries may come before it."""
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
    return error


def edit(data: Path, *removed: str, of_images: tuple[str, ...] = ()) -> list[dict]:
    """Removes parts of the json, and returns its images."""
    content = json.loads((data / LIST).read_text())
    for name in removed:
        del content[name]
    for image in content['images']:
        for name in of_images:
            del image[name]
    (data / LIST).write_text(json.dumps(content))
    return content['images']


@pytest.mark.parametrize(
    ('removed', 'of_images', 'categories'),
    [
        (['annotations'], (), {1, 2, 3}),
        (['annotations', 'categories'], (), {1, 2, 3}),
        (['annotations', 'categories'], ('width', 'height'), {5, 7, 9}),
    ],
)
def test_a_detector_predicts_on_an_image_list(removed, of_images, categories, data, capsys):
    images = edit(data, *removed, of_images=of_images)
    train = data / 'annotations/instances_train2017.json'
    if categories == {1, 2, 3}:
        train.unlink()
    else:  # the categories of the training data
        content = json.loads(train.read_text())
        for one, number in zip(content['categories'], (5, 7, 9), strict=True):
            one['id'] = number
        train.write_text(json.dumps(content))
    settings = ['test_evaluator.format_only=True', 'test_evaluator.outfile_prefix=sub/results']
    assert outcome('detector', '--cfg-options', f'data_root={data}', *settings) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ['the predictions are in sub/results.bbox.json', '{"out": ["sub/results.bbox.json"]}']
    predicted = json.loads(Path('sub/results.bbox.json').read_text())
    assert {one['image_id'] for one in predicted} == {image['id'] for image in images}
    assert {one['category_id'] for one in predicted} == categories


def test_without_annotations_nothing_is_evaluated(data, capsys):
    images = edit(data, 'annotations', 'categories')
    arguments = ['--cfg-options', f'data_root={data}']
    assert outcome('detector', *arguments) == 2
    error = the_error(capsys)
    assert f'no ground truth to evaluate with ({data}/{LIST} has no annotations)' in error
    settings = 'test_evaluator.format_only=True test_evaluator.outfile_prefix=FOLDER/results'
    assert error.endswith(f'add --cfg-options {settings}, or --out FILE.pkl')
    assert not Path('work').exists()
    assert outcome('detector', '--out', 'all.pkl', *arguments) == 0
    assert len(pickle.loads(Path('all.pkl').read_bytes())) == len(images)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {'out': ['all.bbox.json', 'all.pkl']}


@pytest.mark.parametrize('way', ['--out', 'format_only', 'own pipeline'])
def test_a_segmentor_predicts_without_label_maps(way, data, capsys):
    shutil.rmtree(data / 'annotations/validation')
    small = ['test_dataloader.dataset.pipeline.1.scale=(256,64)', 'test_dataloader.dataset.indices=2']
    arguments = ['--cfg-options', f'data_root={data}', *small]
    if way == '--out':
        assert outcome('segmentor', *arguments) == 2
        error = the_error(capsys)
        assert f'({data}/annotations/validation does not exist): to write the predictions, add' in error
        assert error.endswith('test_evaluator.output_dir=FOLDER, or --out FOLDER')
        arguments = ['--out', 'maps', *arguments]
    else:
        arguments += ['test_evaluator.format_only=True', 'test_evaluator.output_dir=maps']
    if way == 'own pipeline':  # as MMSegmentation's documentation says
        with open('segmentor.py', 'a') as config:
            config.write("shapes['data_prefix'] = dict(_delete_=True, img_path='images/validation')\n")
            steps = "dict(type='LoadImageFromFile'), dict(type='Resize', scale=(256, 64)), dict(type='PackSegInputs')"
            workers = 'num_workers=0, persistent_workers=False'
            config.write(f'test_dataloader = dict({workers}, dataset=dict(pipeline=[{steps}], **shapes))\n')
    assert outcome('segmentor', *arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ['the predictions are in maps', '{"out": ["maps"]}']
    maps = sorted(Path('maps').iterdir())
    assert len(maps) == 2
    for path in maps:
        labels = np.asarray(Image.open(path))
        assert labels.shape == (64, 64)
        assert set(np.unique(labels)) <= {1, 2, 3}  # 0 is what reduce_zero_label leaves out


def test_a_class_without_examples_is_null(data, capsys):
    content = json.loads((data / LIST).read_text())
    content['annotations'] = [ann for ann in content['annotations'] if ann['category_id'] != 3]
    (data / LIST).write_text(json.dumps(content))
    assert outcome('detector', '--cfg-options', f'data_root={data}', 'test_evaluator.classwise=True') == 0

    def refuse(constant: str):
        raise ValueError(constant)

    metrics = json.loads(capsys.readouterr().out.splitlines()[-1], parse_constant=refuse)
    assert metrics['coco/triangle_precision'] is None
    assert metrics['coco/circle_precision'] is not None


def test_loaders_without_workers_and_errors_of_the_evaluator(data, capsys):
    loading = ['test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=True']
    arguments = ['--cfg-options', f'data_root={data}', *loading]
    assert outcome('detector', *arguments) == 0
    capsys.readouterr()
    assert outcome('detector', *arguments, 'test_evaluator.metric_items=[AP]') == 2
    streams = capsys.readouterr()
    assert streams.err.startswith('error: the evaluation would fail: test_evaluator, CocoMetric: KeyError:')
    assert len(streams.err.splitlines()) == 1


def test_data_that_is_missing_is_not_data_without_ground_truth(data, capsys):
    """With the config of the run, whose data may be elsewhere."""
    shutil.rmtree(data)
    Path('run').mkdir()
    Path('run/segmentor.py').touch()
    shutil.move('segmentor.pth', 'run/segmentor.pth')
    assert test_tool.main(['segmentor.py', 'run/segmentor.pth', '--cfg-options', f'data_root={data}']) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f'error: the test data is missing: {data}/images/validation does not exist')
    assert error.endswith('; the config of the run of this checkpoint is run/segmentor.py')


@pytest.mark.parametrize(
    ('trained', 'warned'),
    [
        (
            ('triangle', 'square', 'circle'),
            'the classes triangle, square, circle, and the test data has circle, square',
        ),
        (('circle', 'square', 'triangle'), None),
        (None, None),
    ],
)
def test_classes_of_another_order_are_warned_of(trained, warned, data, monkeypatch):
    content = torch.load('detector.pth', weights_only=False)
    torch.save({**content, 'meta': dict(dataset_meta=dict(classes=trained))}, 'detector.pth')
    told = []
    monkeypatch.setattr(run_config, 'print_log', lambda text, **_: told.append(text))
    run_config.warn_of_other_classes(load_config('detector.py', dict(data_root=str(data))), 'detector.pth')
    assert len(told) == bool(warned)
    assert not warned or warned in told[0]
