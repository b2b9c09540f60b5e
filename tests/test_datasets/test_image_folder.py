"""Images in folders: which are listed, with which label, and what becomes of those that cannot be read."""

import os
import subprocess
import sys

import numpy as np
import pytest
from mmengine.dataset import pseudo_collate
from PIL import Image
from torch.utils.data import DataLoader

from pvt_mm.datasets import ImageFolder, image_folder
from pvt_mm.errors import InputError

NAMES = ('a/0.jpeg', 'a/below/2.PNG', 'b/1.jpg', 'b/10.jpg', 'b/2.jpg')
CV2, PILLOW = ([dict(type='LoadImageFromFile', imdecode_backend=name)] for name in ('cv2', 'pillow'))


@pytest.fixture
def root(tmp_path):
    for name in (*NAMES, '.cache/3.jpg', 'a/.4.jpg', 'b/.below/5.jpg'):
        path = tmp_path / 'train' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(0).integers(50, 200, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    (tmp_path / 'train/README.jpg').touch()
    (tmp_path / 'train/b/notes.txt').touch()
    return tmp_path


@pytest.fixture
def log(monkeypatch) -> list[str]:
    messages = []
    monkeypatch.setattr(image_folder, 'print_log', lambda message, **kwargs: messages.append(message))
    return messages


def listed(dataset: ImageFolder) -> list[tuple[str, int]]:
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    return [(info['img_path'], info['gt_label']) for info in infos]


@pytest.mark.parametrize('prefix', ['train', 'train/', dict(img_path='train')])
def test_images_are_listed_with_their_folders_place(prefix, root):
    dataset = ImageFolder(data_root=str(root), data_prefix=prefix)
    assert dataset.metainfo['classes'] == ('a', 'b')
    assert [(os.path.normpath(path), label) for path, label in listed(dataset)] == [
        (str(root / 'train' / name), 'ab'.index(name[0])) for name in NAMES
    ]


def test_the_order_is_not_the_file_systems(root, monkeypatch):
    expected = listed(ImageFolder(data_root=str(root), data_prefix='train'))
    scan = image_folder._scan
    monkeypatch.setattr(image_folder, '_scan', lambda folder: sorted(scan(folder), key=lambda entry: entry.name)[::-1])
    assert listed(ImageFolder(data_root=str(root / 'train'))) == expected


def test_classes_that_are_given_set_the_labels(root):
    dataset = ImageFolder(data_root=str(root), data_prefix='train', metainfo=dict(classes=['b', 'a']))
    assert dataset.metainfo['classes'] == ('b', 'a')
    assert {(os.path.basename(path), label) for path, label in listed(dataset)} == {
        ('1.jpg', 0),
        ('10.jpg', 0),
        ('2.jpg', 0),
        ('0.jpeg', 1),
        ('2.PNG', 1),
    }
    assert len(ImageFolder(data_root=str(root), data_prefix='train', metainfo=dict(classes=['b']))) == 3


@pytest.mark.parametrize(
    ('prefix', 'classes', 'message'),
    [
        ('val', None, r'val cannot be read: No such file'),
        ('train/README.jpg', None, r'README.jpg cannot be read: Not a directory'),
        ('train/b', None, r'train/b has no folder in it: it must have one for each class'),
        ('', None, r'no image in the folders of'),
        ('train', ['a', 'c', 'd'], r'train has no folder c, d: each of metainfo.classes must have one'),
    ],
)
def test_folders_that_are_none_of_classes(prefix, classes, message, root):
    if not prefix:
        for name in (*NAMES, 'README.jpg'):
            (root / 'train' / name).unlink()
    with pytest.raises(InputError, match=message):
        ImageFolder(data_root=str(root), data_prefix=prefix, metainfo=classes and dict(classes=classes))


def test_everything_is_found_by_its_name_alone(root):
    code = f"""
import torch
from mmengine.registry import DATASETS, DATA_SAMPLERS, METRICS, OPTIM_WRAPPER_CONSTRUCTORS, init_default_scope
init_default_scope('mmengine')
crop = dict(type='pvt_mm.RandomResizedCrop', scale=8)
pipeline = [dict(type='LoadImageFromFile'), crop, dict(type='pvt_mm.PackInputs')]
folder = dict(type='pvt_mm.ImageFolder', data_root={str(root)!r}, data_prefix='train', pipeline=pipeline)
dataset = DATASETS.build(folder)
assert dataset[0]['inputs'].shape == (3, 8, 8)
assert len(DATA_SAMPLERS.build(dict(type='pvt_mm.RepeatAugSampler', dataset=dataset))) == 5
assert METRICS.build(dict(type='pvt_mm.Accuracy')).prefix == 'accuracy'
import pvt_mm.registry
assert OPTIM_WRAPPER_CONSTRUCTORS.children['pvt_mm'] is pvt_mm.registry.OPTIM_WRAPPER_CONSTRUCTORS
"""
    subprocess.run([sys.executable, '-c', code], check=True)


# ------------------------------------------------------------------------------------------------ unreadable images


def damage(path, fault: str) -> None:
    content = path.read_bytes()
    path.unlink()
    if fault != 'missing':
        path.write_bytes({'empty': b'', 'text': b'no picture', 'truncated': content[: len(content) // 2]}[fault])


FAULTS = [(CV2, 'missing'), (CV2, 'empty'), (CV2, 'text')]
FAULTS += [(PILLOW, fault) for fault in ('missing', 'empty', 'text', 'truncated')]


@pytest.mark.parametrize(('pipeline', 'fault'), FAULTS)
def test_another_image_is_trained_on(pipeline, fault, root, log):
    dataset = ImageFolder(data_root=str(root), data_prefix='train', pipeline=pipeline)
    damage(root / 'train/b/1.jpg', fault)
    for _ in range(3):
        data = dataset[2]
        assert data['img'].shape == (40, 60, 3)
        assert not data['img_path'].endswith('/1.jpg')
    (message,) = log
    assert f'the image {root}/train/b/1.jpg cannot be read' in message
    assert '\n' not in message
    assert message.endswith('another one is trained on')


@pytest.mark.parametrize(('pipeline', 'fault'), FAULTS)
def test_it_is_tested_as_black(pipeline, fault, root, log):
    steps = [
        dict(type='Resize', scale=(65536, 48), keep_ratio=True, backend='pillow'),
        dict(type='CenterCrop', crop_size=32),
    ]
    dataset = ImageFolder(data_root=str(root), data_prefix='train', pipeline=[*pipeline, *steps], test_mode=True)
    damage(root / 'train/b/1.jpg', fault)
    images = [dataset[i] for i in range(5)]
    assert [image['gt_label'] for image in images] == [0, 0, 1, 1, 1]
    assert {image['img'].shape for image in images} == {(32, 32, 3)}
    assert [bool(image['img'].any()) for image in images] == [True, True, False, True, True]
    assert images[2]['ori_shape'] == (224, 224)
    assert images[2]['img'].dtype == np.uint8
    assert dataset[2]['img_path'].endswith('/1.jpg')
    (message,) = log
    assert message.endswith('it counts as a black one')


@pytest.mark.parametrize('test_mode', [False, True])
def test_nothing_can_be_read(test_mode, root, log):
    for name in NAMES:
        damage(root / 'train' / name, 'text')
    dataset = ImageFolder(data_root=str(root), data_prefix='train', pipeline=CV2, test_mode=test_mode)
    with pytest.raises(
        InputError, match=r'^images cannot be read, \d+ in succession, the last one /.* \(Asse.*failed to load'
    ):
        [dataset[i] for i in range(5)]
    assert len(log) == 5
    dataset = ImageFolder(data_root=str(root), data_prefix='train', pipeline=CV2, test_mode=test_mode, max_refetch=2)
    with pytest.raises(InputError, match='cannot be read, 3 in succession'):
        [dataset[i] for i in range(5)]


def test_unreadable_images_among_others_do_not_add_up(root, log):
    for name in NAMES[::2]:
        damage(root / 'train' / name, 'empty')
    dataset = ImageFolder(data_root=str(root), data_prefix='train', pipeline=CV2, test_mode=True, max_refetch=1)
    assert [bool(dataset[i]['img'].any()) for i in range(5)] == [False, True, False, True, False]
    assert len(log) == 3


def test_what_a_worker_named_is_not_named_again(root, log):
    dataset = ImageFolder(data_root=str(root), data_prefix='train', pipeline=CV2, test_mode=True)
    damage(root / 'train/b/1.jpg', 'missing')
    loader = DataLoader(dataset, num_workers=1, collate_fn=pseudo_collate)
    assert len(list(loader)) == 5
    dataset[2]
    assert log == []


def test_faults_of_other_steps_are_not_the_images(root):
    def fail(data):
        raise OSError('a bug')

    dataset = ImageFolder(data_root=str(root), data_prefix='train', pipeline=[*CV2, fail])
    with pytest.raises(OSError, match='a bug'):
        dataset[0]
    chosen = ImageFolder(
        data_root=str(root),
        data_prefix='train',
        pipeline=[*CV2, lambda data: data if data['gt_label'] else None, lambda data: data['gt_label']],
    )
    assert chosen[0] == 1
