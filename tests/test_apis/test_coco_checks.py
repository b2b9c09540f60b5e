"""Training refuses the faults of COCO exports in one line, and the data checker lists them, by the same code."""

import copy
import json
import os
from pathlib import Path

import mmdet.evaluation  # noqa: F401  # the forks print while it is imported
import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope

from pvt_mm.analysis import dataset_check
from pvt_mm.apis import coco_checks, data_checks
from pvt_mm.apis.config import load_config
from pvt_mm.apis.rehearsal import rehearse
from pvt_mm.utils.errors import InputError
from tests.coco_faults import ACCEPTED, EVALUATED, FAULTS, HOPELESS, MASK_FAULTS, each, one
from tests.conftest import ROOT

LOADED = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


@pytest.fixture(scope='module')
def loaded(shapes) -> Config:
    return load_config(str(ROOT / 'configs/demo/retinanet_shapes.py'), {'data_root': str(shapes)})


@pytest.fixture
def config(loaded) -> Config:
    init_default_scope('mmdet')
    config = copy.deepcopy(loaded)
    for split in ('train', 'val'):
        config[f'{split}_dataloader'].dataset.pipeline = copy.deepcopy(LOADED)
    return config


@pytest.fixture
def plant(config, shapes, tmp_path):
    """Changes the annotations of a split, in a copy of the file; returns the path of the copy."""

    def planted(change, split: str = 'train') -> Path:
        content = json.loads((shapes / f'annotations/instances_{split}2017.json').read_text())
        change(content)
        path = tmp_path / f'{split}.json'
        path.write_text(json.dumps(content))
        config[f'{split}_dataloader'].dataset.ann_file = str(path)
        return path

    return planted


def refusal(config: Config, *splits: str) -> str:
    with pytest.raises(InputError) as error:
        data_checks.check_data(config, *splits)
    assert '\n' not in str(error.value)
    return str(error.value)


def kinds(config: Config, split: str = 'train') -> set[str]:
    splits = dataset_check.check_datasets(config)
    return {fault.kind for found in splits for fault in found.faults if split in fault.split}


def test_valid_data_passes_silently(config, capfd, caplog):
    data_checks.check_data(config, 'train', 'val')
    assert (capfd.readouterr(), caplog.records) == (('', ''), [])
    assert kinds(config) == kinds(config, 'val') == set()


@pytest.mark.parametrize('name', [*FAULTS, *HOPELESS])
def test_faults_are_refused_and_listed(name, config, plant, shapes):
    kind, change = (FAULTS | HOPELESS)[name]
    path = plant(change)
    if kind == 'project as category':  # it is none if it is not trained on, see below
        config.train_dataloader.dataset.metainfo.classes = ('shapes', 'circle', 'square', 'triangle')
        config.model.bbox_head.num_classes = 4
    if name in EVALUATED:
        data_checks.check_data(config, 'train')
        return
    if name != 'the project has the name of a class':
        message = refusal(config, 'train')
        assert str(path) in message
        assert f'train with --data {shapes}' in message or name in HOPELESS
    assert kind in kinds(config)


@pytest.mark.parametrize('name', FAULTS)
def test_faults_in_the_validation_data_are_refused(name, config, plant):
    kind, change = FAULTS[name]
    if kind != 'project as category':
        path = plant(change, 'val')
        assert str(path) in refusal(config, 'train', 'val')


@pytest.mark.parametrize('name', ACCEPTED)
def test_what_is_valid_trains_and_is_evaluated(name, config, plant, capfd):
    kind, change = ACCEPTED[name]
    path = plant(change)
    config.val_dataloader.dataset.update(ann_file=str(path), data_prefix=config.train_dataloader.dataset.data_prefix)
    config.val_evaluator.ann_file = str(path)
    data_checks.check_data(config, 'train', 'val')
    rehearse(config)
    assert 'index' not in capfd.readouterr().out  # of pycocotools
    train = dataset_check.check_datasets(config)[0]
    assert train.faults == []
    assert any(kind and ('exceeds the image' in line or 'training skips it' in line) for line in train.remarks) == (
        kind is not None
    )


def test_unlisted_categories_of_most_objects_are_refused(config, plant):
    plant(each('category_id', 99))
    assert 'the json has no category 99' in refusal(config, 'train')
    assert 'unlisted category' in kinds(config)


def test_a_parent_class_without_objects_in_the_validation_data_alone(config, plant):
    def add_parent(content: dict) -> None:
        FAULTS['the project as category'][1](content)
        content['annotations'][0]['category_id'] = 0

    plant(add_parent)
    plant(FAULTS['the project as category'][1], 'val')
    for split in ('train', 'val', 'test'):
        config[f'{split}_dataloader'].dataset.metainfo.classes = ('shapes', 'circle', 'square', 'triangle')
    config.model.bbox_head.num_classes = 4
    data_checks.check_data(config, 'train', 'val')


def test_a_few_masks_that_training_leaves_out(config, plant):
    def add_many(content: dict) -> None:
        first = content['annotations'][0]
        content['annotations'] += [{**first, 'id': 1000 + i} for i in range(150)]
        content['annotations'][0]['segmentation'] = [[1, 1, 2, 2]]

    plant(add_many)
    config.train_dataloader.dataset.pipeline[1].with_mask = True
    data_checks.check_data(config, 'train')
    plant(add_many, 'val')
    config.val_evaluator.metric = ['bbox', 'segm']
    assert 'a polygon is not' in refusal(config, 'val')


@pytest.mark.parametrize('name', MASK_FAULTS)
def test_faults_of_masks_are_refused_if_they_are_loaded(name, config, plant):
    plant(MASK_FAULTS[name])
    data_checks.check_data(config, 'train')
    config.train_dataloader.dataset.pipeline[1].with_mask = True
    assert 'give each object a segmentation' in refusal(config, 'train')
    assert {'bad mask', 'empty mask'} & kinds(config)


def test_masks_that_the_metric_reads(config, plant):
    plant(MASK_FAULTS['empty masks'], 'val')
    config.val_evaluator.metric = ['bbox', 'segm']
    assert 'there is no mask' in refusal(config, 'val')


@pytest.mark.parametrize(
    ('classes', 'message'),
    [
        (('triangle', 'circle', 'square'), "write metainfo.classes=('circle', 'square', 'triangle')"),
        (('circle', 'square', 'hexagon'), 'it has no hexagon; its classes are circle, square, triangle'),
        (
            ('circle', 'square', 'Triangle'),
            "it has no Triangle; its classes are circle, square, triangle; for 'Triangle', did you mean 'triangle'?",
        ),
    ],
)
def test_classes_that_do_not_fit_the_numbers(classes, message, config):
    for split in ('train', 'val', 'test'):
        config[f'{split}_dataloader'].dataset.metainfo.classes = classes
    assert message in refusal(config, 'train')
    assert 'wrong classes' in kinds(config)


def test_classes_of_jsons_in_another_order(config, plant):
    plant(lambda content: content['categories'].reverse(), 'val')
    assert "metainfo.classes=('triangle', 'square', 'circle')" in refusal(config, 'train', 'val')
    config.val_dataloader.dataset.metainfo = dict(classes=('triangle', 'square', 'circle'))
    assert 'differ in order' in refusal(config, 'train', 'val')
    assert 'other classes' in kinds(config, 'val')


def test_a_subset_of_the_classes_passes(config, plant):
    for split in ('train', 'val', 'test'):
        config[f'{split}_dataloader'].dataset.metainfo.classes = ('circle', 'triangle')
    config.model.bbox_head.num_classes = 2
    data_checks.check_data(config, 'train', 'val')
    found = dataset_check.check_datasets(config)[0]
    assert (found.faults, sorted(found.seen, key=str)) == ([], [0, 1, None])


def test_the_project_as_category_passes_where_it_is_no_class(config, plant):
    plant(FAULTS['the project as category'][1])
    data_checks.check_data(config, 'train')
    assert kinds(config) == set()


@pytest.mark.parametrize(
    ('change', 'text'),
    [(each('area', 0), 'area 0'), (each('bbox', [70, 2, 4, 4]), 'outside')],
)
def test_dropped_objects_are_counted_with_the_reason(change, text, config, plant):
    path = plant(change)
    number = len(json.loads(path.read_text())['annotations'])
    (fault,) = [one for one in dataset_check.check_datasets(config)[0].faults if one.kind == 'dropped objects']
    assert fault.text.startswith(f'training drops {number} of {number} objects: ')
    assert text in fault.text


def test_what_a_data_set_of_ones_own_drops_is_found(config, monkeypatch):
    from mmdet.datasets import CocoDataset

    parse = CocoDataset.parse_data_info

    def drops_squares(self, raw: dict) -> dict:
        info = parse(self, raw)
        return {**info, 'instances': [one for one in info['instances'] if one['bbox_label'] != 1]}

    monkeypatch.setattr(CocoDataset, 'parse_data_info', drops_squares)
    assert 'training drops' in refusal(config, 'train')
    found = dataset_check.check_datasets(config)[0]
    assert {'dropped objects', 'class never seen'} == {fault.kind for fault in found.faults}


@pytest.mark.parametrize(
    ('step', 'message'),
    [
        (dict(type='FilterAnnotations', min_gt_bbox_wh=(99, 99), keep_empty=False), 'the pipeline drops all '),
        (dict(type='Resize', scale_factor=0.0), 'the pipeline raises '),
    ],
)
def test_what_the_pipeline_does_to_all_objects(step, message, config):
    config.train_dataloader.dataset.pipeline.append(step)
    assert message in refusal(config, 'train')
    assert kinds(config) & {'dropped objects', 'invalid pipeline'}


def test_random_crops_may_drop_some(config):
    crop = dict(type='RandomCrop', crop_size=(24, 24), allow_negative_crop=True)
    config.train_dataloader.dataset.pipeline += [crop, dict(type='FilterAnnotations', keep_empty=True)]
    data_checks.check_data(config, 'train')
    assert kinds(config) == set()


def test_images_that_are_left_out(config):
    config.train_dataloader.dataset.filter_cfg = dict(filter_empty_gt=True, min_size=99)
    assert 'training leaves out all 12 images' in refusal(config, 'train')


def test_a_few_dropped_objects_are_logged(config, plant, monkeypatch):
    def add_many(content: dict) -> None:
        first = content['annotations'][0]
        content['annotations'] += [{**first, 'id': 1000 + i} for i in range(150)]
        content['annotations'][0]['area'] = 0

    plant(add_many)
    logged = []
    monkeypatch.setattr(coco_checks, 'print_log', lambda text, *_: logged.append(text))
    data_checks.check_data(config, 'train')
    assert ['training drops it' in text or 'training drops 1 of' in text for text in logged] == [True, True]
    assert 'zero area' in kinds(config)


@pytest.mark.parametrize('damage', [b'\xef\xbb\xbf%s', b'', b'[1]', None])
def test_files_that_mmdetection_cannot_read(damage, config, plant):
    path = plant(lambda content: None)
    text = path.read_bytes()
    path.write_bytes(text[:-200] if damage is None else damage.replace(b'%s', text))
    assert str(path) in refusal(config, 'train')
    assert kinds(config) == {'invalid annotations'}


def test_predicting_needs_no_ground_truth(config, plant, capsys):
    config.test_dataloader.dataset.ann_file = str(
        plant(lambda content: [content.pop(key) for key in ('annotations', 'categories')], 'val')
    )
    config.val_dataloader = config.val_evaluator = None
    assert 'it has no list of annotations' in refusal(config, 'test')
    config.test_evaluator = dict(type='CocoMetric', format_only=True, outfile_prefix='predictions')
    data_checks.check_data(config, 'test')
    test = dataset_check.check_datasets(config)[1]
    assert (test.faults, len(test.items)) == ([], 6)
    assert any('can only be predicted on' in remark for remark in test.remarks)


def test_a_file_is_read_once_until_it_changes(config, plant, monkeypatch):
    read = []
    monkeypatch.setattr(coco_checks, 'read_coco', lambda path: read.append(path) or json.loads(Path(path).read_text()))
    path = plant(lambda content: None)
    for _ in range(2):
        data_checks.check_data(config, 'train')
    assert len(read) == 1
    config.train_dataloader.dataset.pipeline[1].with_mask = True
    data_checks.check_data(config, 'train')
    os.utime(path, (0, 0))
    data_checks.check_data(config, 'train')
    assert len(read) == 3
    plant(one('id', 1))
    for _ in range(2):
        refusal(config, 'train')
    assert len(read) == 5
