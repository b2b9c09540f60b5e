"""Faults planted in folders of classes: named by the check of data, refused or warned of before training."""

import shutil
from pathlib import Path

import pytest
from mmengine.config import Config

from pvt_mm.analysis import dataset_check
from pvt_mm.apis import data_checks, faults
from pvt_mm.datasets.shapes import CLASSES
from pvt_mm.utils.errors import InputError
from tests.data_configs import folder_config


@pytest.fixture
def root(shapes, tmp_path) -> Path:
    """A copy of the folders of classes that a test may damage."""
    shutil.copytree(shapes / 'classification', tmp_path / 'classification')
    return tmp_path / 'classification'


@pytest.fixture
def folders(root) -> Config:
    return folder_config(root.parent)


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    found = []
    monkeypatch.setattr(faults, 'warn', found.append)
    return found


def refuses(config: Config, split: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        data_checks.check_data(config, split)
    assert '\n' not in str(raised.value)


def kinds(config: Config) -> list[tuple[str, str]]:
    """Returns the split and kind of each fault that the check of the whole data finds."""
    return [(fault.split, fault.kind) for split in dataset_check.check_datasets(config) for fault in split.faults]


def test_testing_needs_no_training_data(folders, root):
    shutil.rmtree(root / 'train')
    data_checks.check_data(folders, 'test')
    (root / 'train').mkdir()
    data_checks.check_data(folders, 'test')
    folders.train_dataloader = None
    data_checks.check_data(folders, 'test')


def test_folders_without_classes_or_images(folders, root):
    train = root / 'train'
    for path in (train / 'square').iterdir():
        path.rename(path.with_suffix('.heic'))
    count = len([*(train / 'square').iterdir()])
    message = (
        rf'there is no image of square: its folder in .*/train has none, but {count} files that end in .heic; fill'
    )
    refuses(folders, 'train', message)
    assert ('train', 'class without images') in kinds(folders)
    shutil.move(train, root / 'all')
    train.mkdir()
    refuses(folders, 'train', r'train contains no folder: it must have one for each class')


def test_a_file_is_no_folder_of_images(folders, root):
    shutil.rmtree(root / 'train')
    (root / 'train').mkdir()
    (root / 'train/readme.txt').write_text('')  # and no class: what is tested needs no training data
    data_checks.check_data(folders, 'test')


@pytest.mark.parametrize('name', ['train', 'shapes'])
def test_folders_that_are_nested_by_mistake(name, folders, root):
    shutil.move(root / 'train', root / 'all')
    (root / 'train').mkdir()
    shutil.move(root / 'all', root / 'train' / name)
    refuses(folders, 'train', 'circle, square, triangle')
    assert ('train', 'nested folders') in kinds(folders)
    folders.train_dataloader.dataset.data_prefix = f'train/{name}'
    data_checks.check_data(folders, 'train', 'val')


def test_splits_in_place_of_classes(folders, root):
    folders.train_dataloader.dataset.data_prefix = ''
    message = (
        r'would be train, val, and circle, square, .* these are splits; let data_prefix end in one of them, as in '
    )
    refuses(folders, 'train', message)
    assert ('train', 'nested folders') in kinds(folders)


def test_folders_of_archives_are_no_classes(folders, root):
    for name in ('__MACOSX', '.ipynb_checkpoints'):
        shutil.copytree(root / 'train/circle', root / 'train' / name)
    data_checks.check_data(folders, 'train', 'val')
    assert kinds(folders) == []


def test_classes_that_differ_in_case(folders, root, warnings):
    for split in ('train', 'val'):
        (root / split / 'square').rename(root / split / 'Circle')
    data_checks.check_data(folders, 'train', 'val')
    assert len(warnings) == 2
    assert f'the classes Circle and circle of {root}/train differ in case only: if they are one, use' in warnings[0]
    assert ('train', 'classes that differ in case') in kinds(folders)
    (root / 'val/Circle').rename(root / 'val/Square')
    (root / 'train/Circle').rename(root / 'train/square')
    message = 'the train data has no Square, but square, and the val data has no square, but Square; give both'
    refuses(folders, 'val', message)


def test_an_image_of_two_classes(folders, root, warnings):
    source = next((root / 'train/circle').iterdir())
    shutil.copy(source, root / 'train/square/other.jpg')
    data_checks.check_data(folders, 'train')
    assert warnings == [
        f'the train data: {root}/train/square/other.jpg is the same image as {source}, of another class: remove one'
    ]
    assert kinds(folders) == [('train', 'image of two classes')]


def test_images_in_the_folder_of_no_class(folders, root, warnings):
    for name in ('a.jpg', 'b.jpg'):
        shutil.copy(next((root / 'train/circle').iterdir()), root / 'train' / name)
    data_checks.check_data(folders, 'train')
    assert warnings == [
        f'the train data: 2 images in {root}/train, such as a.jpg, are in the folder of no class and are left out'
    ]
    assert kinds(folders) == [('train', 'image left out')]


def test_another_name_of_the_validation_folder(folders, root):
    (root / 'val').rename(root / 'valid')
    refuses(folders, 'val', f'{root}/val does not exist. .*, but {root}/valid does: name it in data_prefix')
    text = [fault.text for split in dataset_check.check_datasets(folders) for fault in split.faults]
    assert f'but {root}/valid does: name it in data_prefix' in text[0]


# ------------------------------------------------------------------------------------------------------------- classes


def test_classes_of_one_split_only(folders, root):
    train, val = root / 'train', root / 'val'
    (val / 'square').rename(val / 'star')
    data_checks.check_data(folders, 'train')
    message = 'the train and the val data differ: the train data has no star, and the val data has no square; give both'
    refuses(folders, 'val', message)
    (named,) = [fault for split in dataset_check.check_datasets(folders) for fault in split.faults]
    assert named.kind == 'other classes'
    assert message in named.text.replace('val, test', 'val')
    shutil.copytree(train / 'square', val / 'square')
    folders.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=folders.train_dataloader.dataset)
    refuses(folders, 'test', r'the train and the test data differ: the train data has no star; give both')
    folders.test_dataloader.dataset.metainfo = dict(classes=CLASSES)
    data_checks.check_data(folders, 'test')


def test_classes_that_are_given(folders):
    folders.train_dataloader.dataset.metainfo = dict(classes=['square', 'circle', 'triangle'])
    refuses(
        folders, 'val', r'classes of the train and the val data differ in order: those of the train data are square,'
    )
    folders.val_dataloader.dataset.metainfo = dict(classes=('square', 'circle', 'triangle'))
    data_checks.check_data(folders, 'train', 'val')
    folders.train_dataloader.dataset.metainfo = dict(classes=('circle', 'star'))
    refuses(folders, 'train', r'train has no folder star: each of metainfo.classes')
    folders.train_dataloader.dataset.metainfo = dict(classes='circle')
    refuses(folders, 'train', r"metainfo.classes is the string 'circle': write a tuple, \('circle',\) for one class")


# --------------------------------------------------------------------------------------------------------------- lists


def test_a_list_of_images(folders, root, warnings):
    paths = sorted(path.relative_to(root) for path in (root / 'train').rglob('*.jpg'))
    lines = [f'{path} {CLASSES.index(path.parent.name)}\n' for path in paths[::2]]
    (root / 'list.txt').write_text(''.join(lines))
    dataset = folders.train_dataloader.dataset
    dataset.update(data_prefix='', ann_file='list.txt', metainfo=dict(classes=CLASSES))
    data_checks.check_data(folders, 'train', 'val')
    splits = dataset_check.check_datasets(folders)
    assert [(split.name, len(split.items), split.faults) for split in splits] == [
        ('train', len(lines), []),
        ('val, test', 6, []),
    ]
    assert warnings == []
    other = next(i for i, path in enumerate(paths[::2]) if path.parent.name == 'square')
    shutil.copy(root / paths[0], root / 'copy.jpg')
    (root / 'list.txt').write_text(''.join([*lines, 'copy.jpg 2\n']))
    data_checks.check_data(folders, 'train')
    assert ('copy.jpg' in warnings[0], kinds(folders)) == (True, [('train', 'image of two classes')])
    (root / 'list.txt').write_text(''.join(lines).replace(' 1\n', ' 3\n'))
    refuses(folders, 'train', rf'list.txt, line {other + 1}: .* 3: the 3 classes are 0 to 2: circle, square, triangle')
    assert ('train', 'missing') in kinds(folders)
