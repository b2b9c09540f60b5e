"""Images in folders: which are listed, with which label, and those that cannot be read."""

import contextlib
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from pvt_mm.datasets import ImageFolder
from pvt_mm.utils.errors import InputError, command

NAMES = ('a/0.jpeg', 'a/below/2.PNG', 'b/1.jpg', 'b/10.jpg', 'b/2.jpg')


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


def listed(dataset: ImageFolder) -> list[tuple[str, int]]:
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    return [(info['img_path'], info['gt_label']) for info in infos]


@pytest.mark.parametrize('prefix', ['train', 'train/', dict(img_path='train')])
def test_images_are_listed_with_the_index_of_their_folder(prefix, root):
    dataset = ImageFolder(data_root=str(root), data_prefix=prefix)
    assert dataset.metainfo['classes'] == ('a', 'b')
    assert [(os.path.normpath(path), label) for path, label in listed(dataset)] == [
        (str(root / 'train' / name), 'ab'.index(name[0])) for name in NAMES
    ]


def test_the_order_is_not_the_file_systems(root, monkeypatch):
    expected = listed(ImageFolder(data_root=str(root), data_prefix='train'))
    scan = os.scandir

    @contextlib.contextmanager
    def reversed_scan(folder):
        with scan(folder) as entries:
            yield sorted(entries, key=lambda entry: entry.name)[::-1]

    monkeypatch.setattr(os, 'scandir', reversed_scan)
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
        ('train/b', None, r'train/b contains no folder: it must have one for each class'),
        ('', None, 'there are no images in the folders of'),
        ('train', ['a', 'c', 'd'], r'train has no folder c, d: each of metainfo.classes must have one'),
    ],
)
def test_folders_without_classes_or_images(prefix, classes, message, root):
    if not prefix:
        for name in (*NAMES, 'README.jpg'):
            (root / 'train' / name).unlink()
    with pytest.raises(InputError, match=message):
        ImageFolder(data_root=str(root), data_prefix=prefix, metainfo=classes and dict(classes=classes))


def test_everything_is_found_by_its_name(root):
    """Without importing anything of this package."""
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


@pytest.mark.parametrize('test_mode', [False, True])
@pytest.mark.parametrize(
    ('backend', 'fault'), [('cv2', 'missing'), ('cv2', 'text'), ('pillow', 'missing'), ('pillow', 'truncated')]
)
def test_an_unreadable_image_raises(backend, fault, test_mode, root):
    pipeline = [dict(type='LoadImageFromFile', imdecode_backend=backend)]
    dataset = ImageFolder(data_root=str(root), data_prefix='train', pipeline=pipeline, test_mode=test_mode)
    assert dataset[2]['img'].shape == (40, 60, 3)
    path = root / 'train/b/1.jpg'
    content = path.read_bytes()
    path.unlink()
    if fault != 'missing':
        path.write_bytes({'text': b'not an image', 'truncated': content[: len(content) // 2]}[fault])
    with pytest.raises(InputError, match=rf'^an image cannot be read: {path} .*; restore it') as raised:
        dataset[2]
    assert '\n' not in str(raised.value)
    assert dataset[1]['gt_label'] == 0


def test_an_unreadable_image_in_a_worker_is_one_line(root, capsys):
    path = root / 'train/b/1.jpg'
    path.write_bytes(b'not an image')
    dataset = ImageFolder(data_root=str(root), data_prefix='train', pipeline=[dict(type='LoadImageFromFile')])
    batches = iter(DataLoader(dataset, num_workers=1, collate_fn=list))
    assert command(lambda argv=None: list(batches))() == 2
    batches._shutdown_workers()  # garbage collection waits 5 seconds for them
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'error: an image cannot be read: {path} is truncated or not an image')


def test_errors_of_other_transforms_are_not_the_images(root):
    def fail(data):
        raise OSError('a bug')

    dataset = ImageFolder(data_root=str(root), data_prefix='train', pipeline=[dict(type='LoadImageFromFile'), fail])
    with pytest.raises(OSError, match='a bug'):
        dataset[0]


# --------------------------------------------------------------------------------------------------------------- lists


def from_list(root, text: str, **settings) -> ImageFolder:
    (root / 'list.txt').write_text(text)
    return ImageFolder(**{**dict(data_root=str(root), data_prefix='train', ann_file='list.txt'), **settings})


def test_a_list_chooses_images_and_gives_their_classes(root):
    text = '\ufeffb/2.jpg 1\r\n\nb/10.jpg 1\na/below/2.PNG  0\n'
    paths = [
        (str(root / 'train' / name), label) for name, label in (('b/2.jpg', 1), ('b/10.jpg', 1), ('a/below/2.PNG', 0))
    ]
    dataset = from_list(root, text)
    assert (listed(dataset), dataset.metainfo['classes']) == (paths, ('a', 'b'))
    (root / 'b 1').mkdir()
    (root / 'b 1/x y.jpg').touch()
    dataset = from_list(root, 'b 1/x y.jpg 1', data_prefix='', metainfo=dict(classes=('dog', 'cat')))
    assert listed(dataset) == [(str(root / 'b 1/x y.jpg'), 1)]
    assert dataset.metainfo['classes'] == ('dog', 'cat')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (
            'a/0.jpeg 0\nb/1.jpg\n',
            r"list.txt, line 2: b/1.jpg: a line is an image's path below .*/train, a space, and the",
        ),
        ('a/0.jpeg -1\n', 'line 1: a/0.jpeg -1: a line is'),
        ('a/0.jpeg 0.0\n', 'line 1: .*: a line is'),
        ('0\n', 'line 1: 0: a line is'),
        ('\n\na/0.jpeg 2\n', 'line 3: a/0.jpeg 2: the 2 classes are 0 to 1: a, b'),
        ('train/a/0.jpeg 0\n', 'line 1: .*train/train/a/0.jpeg does not exist'),
        ('a/0.jpeg 0\na/0.jpeg 1\n', 'line 2: a/0.jpeg 1: another line gives the image the class 0'),
        (
            'a/0.jpeg 1\n',
            'line 1: .*: the image is in the folder a, and the class 1 is b: number the classes in the order',
        ),
        ('\n', 'list.txt is empty'),
    ],
)
def test_lists_that_are_wrong(text, message, root):
    with pytest.raises(InputError, match=message) as raised:
        from_list(root, text)
    assert '\n' not in str(raised.value)


def test_lists_that_cannot_be_read(root):
    (root / 'latin.txt').write_bytes(b'\xe9/1.jpg 0')
    for name, message in (('gone.txt', 'No such file'), ('latin.txt', 'utf-8')):
        with pytest.raises(InputError, match=rf'the list of images .*/{name} cannot be read: .*{message}'):
            ImageFolder(data_root=str(root), data_prefix='train', ann_file=name)
