"""What is found wrong with data before a run starts."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from pvt_mm.apis import data_checks
from pvt_mm.utils.errors import InputError
from tests.data_configs import MAP_CLASSES, config_of, folder_config, map_config

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
    return map_config(root)


@pytest.fixture
def folders(root) -> Config:
    return folder_config(root)


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


def refuses(config: Config, split: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        data_checks.check_data(config, split)


def test_the_random_numbers_of_training_are_not_used_up(coco):
    coco.train_dataloader.dataset.pipeline += [
        dict(type='RandomFlip', prob=0.5),
        dict(type='MinIoURandomCrop'),
        dict(type='PackDetInputs'),
    ]
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    data_checks.check_data(coco, 'train')
    assert random.getstate() == before[0]
    np.testing.assert_equal(np.random.get_state(), before[1])
    assert torch.equal(torch.get_rng_state(), before[2])


# ---------------------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize('kind', ['coco', 'maps', 'folders'])
def test_valid_data_passes(kind, request):
    config = request.getfixturevalue(kind)
    data_checks.check_data(config, 'train', 'val', 'test')
    data_checks.check_data(Config(dict(model=config.model, train_dataloader=None)), 'train')


def test_missing_files_are_named_with_the_layout(coco, folders, root):
    coco.test_evaluator = [dict(type='CocoMetric', ann_file='gone.json')]
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
        classes = CLASSES if config is not maps else MAP_CLASSES
        init_default_scope('mmdet' if config is coco else 'mmseg' if config is maps else 'mmengine')
        refuses(config, 'train', f'model.{head}.num_classes is 80, and the train data has {len(classes)} classes')
    coco.model = dict(roi_head=dict(bbox_head=dict(num_classes=3), mask_head=dict(num_classes=80)))
    init_default_scope('mmdet')
    refuses(coco, 'train', 'model.roi_head.mask_head.num_classes is 80')
    coco.model = dict(roi_head=dict(bbox_head=dict(num_classes=3), semantic_head=dict(num_classes=183)))
    data_checks.check_data(coco, 'train')  # of stuff, as in HTC
