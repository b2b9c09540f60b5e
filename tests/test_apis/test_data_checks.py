"""What is found wrong with data before a run starts."""

import copy
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import TRANSFORMS, init_default_scope
from PIL import Image

from pvt_mm.apis import data_checks
from pvt_mm.utils.errors import InputError

CLASSES = ('circle', 'square', 'triangle')


@pytest.fixture
def root(shapes, tmp_path) -> Path:
    """A copy of the shapes that a test may damage."""
    return shutil.copytree(shapes, tmp_path / 'shapes')


@pytest.fixture
def coco(root) -> Config:
    return config_of('mmdet', dict(bbox_head=dict(num_classes=3), rpn_head=dict(num_classes=1)), coco_data, root)


@pytest.fixture
def maps(root) -> Config:
    return config_of('mmseg', dict(decode_head=dict(num_classes=3)), map_data, root)


@pytest.fixture
def folders(root) -> Config:
    return config_of('mmengine', dict(head=dict(num_classes=3)), folder_data, root / 'classification')


def config_of(scope: str, model: dict, data, root: Path) -> Config:
    init_default_scope(scope)
    loaders = {
        f'{split}_dataloader': dict(batch_size=2, dataset=data(root, split)) for split in ('train', 'val', 'test')
    }
    return Config(dict(model=model, **loaders))


def coco_data(root: Path, split: str) -> dict:
    year = 'train2017' if split == 'train' else 'val2017'
    return dict(
        type='CocoDataset',
        data_root=f'{root}/',
        ann_file=f'annotations/instances_{year}.json',
        data_prefix=dict(img=f'{year}/'),
        metainfo=dict(classes=CLASSES),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)],
    )


def map_data(root: Path, split: str) -> dict:
    folder = 'training' if split == 'train' else 'validation'
    return dict(
        type='BaseSegDataset',
        data_root=f'{root}/',
        data_prefix=dict(img_path=f'images/{folder}', seg_map_path=f'annotations/{folder}'),
        reduce_zero_label=True,
        metainfo=dict(classes=CLASSES, palette=[[0, 0, 0]] * 3),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='mmseg.LoadAnnotations')],
    )


def folder_data(root: Path, split: str) -> dict:
    return dict(
        type='pvt_mm.ImageFolder',
        data_root=f'{root}/',
        data_prefix='train' if split == 'train' else 'val',
        pipeline=[dict(type='LoadImageFromFile'), dict(type='pvt_mm.RandomResizedCrop', scale=32)],
    )


def refuses(config: Config, split: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        data_checks.check_data(config, split)


# ---------------------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize('kind', ['coco', 'maps', 'folders'])
def test_valid_data_passes(kind, request):
    config = request.getfixturevalue(kind)
    data_checks.check_data(config, 'train', 'val', 'test')
    data_checks.check_data(Config(dict(model=config.model, train_dataloader=None)), 'train')


def test_missing_files_are_named_with_the_layout(coco, folders, root):
    coco.test_evaluator = [dict(ann_file='gone.json')]
    refuses(coco, 'test', r'test_evaluator.ann_file, gone.json, does not exist')
    coco.val_dataloader.dataset.data_prefix.img = 'images2017'
    refuses(coco, 'val', r'the val data is missing: .*/images2017 does not exist. COCO is laid out as')
    inner = {**coco.train_dataloader.dataset, 'data_root': '/gone'}
    joined = dict(type='ConcatDataset', datasets=[coco_data(root, 'train'), inner])
    coco.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=joined)
    refuses(coco, 'train', 'the train data is missing: /gone/annotations/instances_train2017.json does not exist')
    shutil.rmtree(root / 'classification/val')
    for prefix in ('val', dict(img_path='val')):
        folders.val_dataloader.dataset.data_prefix = prefix
        refuses(
            folders, 'val', rf'/val does not exist. ImageNet is laid out as .*; {root}/classification has train: set'
        )


@pytest.mark.parametrize('size', [0, -1, 'two'])
def test_batch_sizes_below_one(size, coco):
    coco.train_dataloader.batch_size = size
    refuses(coco, 'train', f'train_dataloader.batch_size is {size}: it must be at least 1')


def test_pipelines_that_cannot_be_built(coco, folders):
    init_default_scope('mmdet')
    coco.train_dataloader.dataset.pipeline.append(dict(type='Resize', scales=[(1, 1)]))
    refuses(coco, 'train', r'train_dataloader.dataset.pipeline.2 \(Resize\) cannot be built: TypeError')
    folders.train_dataloader.dataset.pipeline[1].interpolation = 'bicubik'
    refuses(folders, 'train', r"pipeline.1 \(pvt_mm.RandomResizedCrop\) cannot be built: .*no interpolation 'bicubik'")


@pytest.mark.parametrize(
    ('classes', 'message'),
    [
        (('circle', 'hexagon', 'triangle'), 'has no hexagon; its classes are circle, square, triangle; set metainfo'),
        (('circle', 'square'), 'bbox_head.num_classes is 3, and the train data has 2 classes: they must'),
        ('circle', r"metainfo.classes is the string 'circle': write a tuple, \('circle',\) for"),
        (None, r"metainfo.classes is None, .*; write metainfo.classes=\('circle', 'square', 'triangle'\)"),
        ({}, 'has no person, bicycle, car, motorcycle, airplane and 75 more; its'),  # COCO's are the default
    ],
)
def test_classes_that_do_not_fit_the_annotations(classes, message, coco):
    coco.train_dataloader.dataset.metainfo = classes if isinstance(classes, dict) else dict(classes=classes)
    refuses(coco, 'train', message)


def test_heads_with_another_number_of_classes(coco, maps, folders):
    for config, head in ((coco, 'bbox_head'), (maps, 'decode_head'), (folders, 'head')):
        config.model[head].num_classes = 80
        init_default_scope('mmdet' if config is coco else 'mmseg' if config is maps else 'mmengine')
        refuses(config, 'train', f'model.{head}.num_classes is 80, and the train data has 3 classes')
    coco.model = dict(roi_head=dict(bbox_head=dict(num_classes=3), mask_head=dict(num_classes=80)))
    init_default_scope('mmdet')
    refuses(coco, 'train', 'model.roi_head.mask_head.num_classes is 80')


# ---------------------------------------------------------------------------------------------------------- label maps


def label(path: Path, value: int) -> None:
    labels = np.array(Image.open(path))
    labels[0, 0] = value
    Image.fromarray(labels).save(path)


def test_labels_outside_of_the_classes(maps, root):
    path = sorted((root / 'annotations/training').iterdir())[1]
    label(path, 255)
    data_checks.check_data(maps, 'train')
    label(path, 4)
    message = f'{path} has the label 3 after reduce_zero_label, and the 3 classes are 0 to 2: fix the label map'
    refuses(maps, 'train', message)
    data_checks.check_data(maps, 'val')
    data_checks.check_data(Config({**maps, 'resume': True}), 'train')  # they were read when the run began
    maps.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=maps.train_dataloader.dataset)
    maps.model = dict(type='SegTTAModel', module=dict(decode_head=[dict(num_classes=3)]))  # a list in cascades
    refuses(maps, 'train', message)


def test_labels_of_a_data_set_without_names_of_classes(maps, root):
    data = maps.train_dataloader.dataset
    data.metainfo, data.reduce_zero_label = None, False
    maps.model.decode_head.update(num_classes=4)
    data_checks.check_data(maps, 'train')
    maps.model.decode_head.update(num_classes=3, ignore_index=3)
    data_checks.check_data(maps, 'train')
    maps.model.decode_head.update(ignore_index=255)
    refuses(maps, 'train', 'has the label 3, and the 3 classes are 0 to 2: fix')


def test_label_maps_that_cannot_be_read(maps, root):
    path = sorted((root / 'annotations/training').iterdir())[1]
    path.write_bytes(b'not an image')
    refuses(maps, 'train', f'the label map {path} cannot be read: ')
    path.unlink()
    refuses(maps, 'train', f'the label map {path} cannot be read: ')


def test_label_maps_are_read_once_until_they_change(maps, root, tmp_path, monkeypatch):
    def read_by(config: Config) -> int:
        """Returns how many label maps a check reads."""
        before = len(read)
        data_checks.check_data(config, 'train')
        return len(read) - before

    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    read = []
    load = TRANSFORMS.get('mmseg.LoadAnnotations').transform
    monkeypatch.setattr(TRANSFORMS.get('mmseg.LoadAnnotations'), 'transform', lambda *a: read.append(1) or load(*a))
    paths = sorted((root / 'annotations/training').iterdir())
    other = Config(copy.deepcopy(maps.to_dict()))
    assert [read_by(maps), read_by(maps), read_by(other)] == [len(paths), 0, 0]
    os.utime(paths[3], ns=(0, 0))
    assert [read_by(maps), read_by(maps)] == [len(paths), 0]
    paths[3].unlink()
    (root / 'images/training' / f'{paths[3].stem}.jpg').unlink()
    assert [read_by(maps), read_by(maps)] == [len(paths) - 1, 0]
    other.model.decode_head.ignore_index = 254  # another question
    refuses(other, 'train', 'has the label 255')
    label(paths[0], 4)
    for _ in range(2):  # an error is not remembered
        refuses(maps, 'train', 'has the label 3')
    label(paths[0], 1)

    (records,) = (tmp_path / 'cache/pvt_mm').iterdir()
    records.write_bytes(b'\xff\xff')  # not text
    assert [read_by(maps), read_by(maps)] == [len(paths) - 1, len(paths) - 1]
    for unwritable in (str(paths[0]), '~'):  # a file; a folder that the system does not know
        monkeypatch.setenv('XDG_CACHE_HOME', unwritable)
        assert [read_by(maps), read_by(maps)] == [len(paths) - 1, len(paths) - 1]
    assert not list(root.rglob('*checked_labels*'))  # the data is left as it is
    assert not Path('~').exists()


# ------------------------------------------------------------------------------------------------------- image folders


def test_testing_needs_no_training_data(folders, root):
    shutil.rmtree(root / 'classification/train')
    data_checks.check_data(folders, 'test')
    (root / 'classification/train').mkdir()
    data_checks.check_data(folders, 'test')
    folders.train_dataloader = None
    data_checks.check_data(folders, 'test')


def test_folders_without_classes_or_images(folders, root):
    train = root / 'classification/train'
    for path in (train / 'square').iterdir():
        path.rename(path.with_suffix('.txt'))
    refuses(folders, 'train', r'the train data has no image of square: fill the folder in .*/train, or')
    shutil.move(train, root / 'all')
    train.mkdir()
    refuses(folders, 'train', r'train contains no folder: it must have one for each class')
    shutil.copytree(root / 'all', train / 'all')
    refuses(folders, 'train', r'the train data has one class, all: .*/train must have a folder for')


def test_classes_of_one_split_only(folders, root):
    train, val = root / 'classification/train', root / 'classification/val'
    (val / 'square').rename(val / 'star')
    data_checks.check_data(folders, 'train')
    refuses(folders, 'val', r'the train and the val data differ: .*/val has no square; give both')
    shutil.copytree(train / 'square', val / 'square')
    folders.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=folders.train_dataloader.dataset)
    refuses(folders, 'test', r'the train and the test data differ: .*/train has no star; give both')
    folders.test_dataloader.dataset.metainfo = dict(classes=CLASSES)
    data_checks.check_data(folders, 'test')


def test_classes_that_are_given(folders):
    folders.train_dataloader.dataset.metainfo = dict(classes=['square', 'circle', 'triangle'])
    refuses(folders, 'val', r'metainfo.classes of the train and the val data differ in order')
    folders.val_dataloader.dataset.metainfo = dict(classes=('square', 'circle', 'triangle'))
    data_checks.check_data(folders, 'train', 'val')
    folders.train_dataloader.dataset.metainfo = dict(classes=('circle', 'star'))
    refuses(folders, 'train', r'train has no folder star: each of metainfo.classes')
