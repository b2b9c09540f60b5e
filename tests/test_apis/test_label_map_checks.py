"""Faults planted in label maps: named by the check of data, refused before training, repaired where they can be."""

import copy
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import TRANSFORMS
from PIL import Image

from pvt_mm.analysis import dataset_check, samples
from pvt_mm.apis import data_checks, faults, label_map_checks
from pvt_mm.datasets.label_maps import repair_maps
from pvt_mm.utils.errors import InputError
from tests.data_configs import MAP_CLASSES, map_config, map_data

COLORS = np.array([[0, 0, 0], [200, 0, 0], [0, 200, 0], [0, 0, 200]], np.uint8)
NAMES = {tuple(color): name for color, name in zip(COLORS.tolist(), MAP_CLASSES, strict=True)}


@pytest.fixture
def root(shapes, tmp_path) -> Path:
    """A copy of the shapes that a test may damage."""
    return shutil.copytree(shapes, tmp_path / 'shapes')


@pytest.fixture
def maps(root) -> Config:
    return map_config(root)


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    found = []
    for module in (faults, label_map_checks):
        monkeypatch.setattr(module, 'warn', found.append)
    return found


def refuses(config: Config, split: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        data_checks.check_data(config, split)
    assert '\n' not in str(raised.value)


def kinds(config: Config) -> list[tuple[str, str]]:
    """Returns the split and kind of each fault that the check of the whole data finds."""
    return [(fault.split, fault.kind) for split in dataset_check.check_datasets(config) for fault in split.faults]


def paths_of(root: Path, split: str = '*') -> list[Path]:
    return sorted((root / 'annotations').glob(f'{split}/*.png'))


def rewrite(write: Callable[[np.ndarray], Image.Image | bytes], suffix: str = '.png') -> Callable[[Path], None]:
    """Returns what writes all label maps anew from their labels, (H, W)."""

    def plant(root: Path) -> None:
        for path in paths_of(root):
            written = write(np.array(Image.open(path)))
            path.unlink()
            path = path.with_suffix(suffix)
            if isinstance(written, bytes):
                path.write_bytes(written)
            else:
                written.save(path)

    return plant


def image(labels: np.ndarray, kind: type = np.uint8) -> Image.Image:
    return Image.fromarray(labels.astype(kind))


def few_bits(labels: np.ndarray, bits: int) -> bytes:
    """Returns a grey PNG of 2 or 4 bits a pixel, which Pillow cannot write."""
    H, W = labels.shape
    parts = labels.astype(np.uint8).reshape(H, -1, 8 // bits) << np.arange(8 - bits, -1, -bits)
    rows = b''.join(b'\0' + bytes(row.tolist()) for row in parts.sum(-1))

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))

    header = chunk(b'IHDR', struct.pack('>IIBBBBB', W, H, bits, 0, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + header + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')


def palette(labels: np.ndarray) -> Image.Image:
    written = image(labels).convert('P')
    written.putpalette(COLORS.ravel().tolist())
    return written


@dataclass(frozen=True)
class Planted:
    """A fault in all label maps: what it is called, how training refuses it, and what its maps should have been."""

    plant: Callable[[Path], None]
    kind: str
    message: str
    classes: tuple[str, ...] = MAP_CLASSES
    truth: Callable[[np.ndarray], np.ndarray] | None = lambda labels: labels
    suffix: str = '.png'
    colors: dict | None = None


BINARY = ('background', 'shape')
PLANTED = {
    '0 and 255': Planted(
        rewrite(lambda labels: image((labels > 0) * 255)),
        'one label',
        'have the labels 0, 255; 255 is ignored: of 2 classes only background is left; give each pixel the number of',
        BINARY,
        lambda labels: labels > 0,
    ),
    'black and white JPEG': Planted(
        rewrite(lambda labels: image((labels > 0) * 255), '.jpg'),
        'label map of another type',
        r'000001.jpg is a JPEG, whose compression changes labels: save the label maps as PNG \(and 11 more like it\)',
        BINARY,
        lambda labels: labels > 0,
        '.jpg',
    ),
    'smooth edges': Planted(
        rewrite(lambda labels: image((labels > 0) * 255).resize((192, 192), 1).resize((64, 64), 2)),
        'label outside',
        r'pixels have the label \d+, .*, and the 2 classes are 0 to 1: give each pixel the number of its class',
        BINARY,
        None,  # tested by itself: the edges move
    ),
    'colours': Planted(
        rewrite(lambda labels: Image.fromarray(COLORS[labels])),
        'label map of colours',
        r'12 of 12 label maps, such as .*000001.png, have colours in place of labels, \(0, 0, 0\) \([\d.]+%\), \(\d+',
        colors=NAMES,
    ),
    'transparent colours': Planted(
        rewrite(lambda labels: Image.fromarray(np.dstack([COLORS[labels], (labels > 0) * np.uint8(255)]))),
        'label map of colours',
        r'have colours in place of labels, \(0, 0, 0\)',
        colors=NAMES,
    ),
    'JPEG of colours': Planted(
        rewrite(lambda labels: Image.fromarray(COLORS[labels]), '.jpg'),
        'label map of another type',
        'is a JPEG, whose compression changes labels',
        truth=None,
        suffix='.jpg',
        colors=NAMES,
    ),
    'equal channels': Planted(
        rewrite(lambda labels: image(labels[..., None].repeat(3, -1))),
        'label map of colours',
        r'have RGB channels in place of one, with the values 0 \([\d.]+%\), .*: save one',
    ),
    '16 bits': Planted(
        rewrite(lambda labels: image(labels.astype(int) * 257, np.uint16)),
        'label map of another type',
        r'has the values 0 to \d+, and training reads whole numbers from 0 to 255 \(I;16',
    ),
    '2 bits': Planted(
        rewrite(lambda labels: few_bits(labels, 2)),
        'label map of another type',
        'has 2 bits a pixel, and is read with its labels times 85: save it with 8',
    ),
    '4 bits': Planted(
        rewrite(lambda labels: few_bits(labels, 4)),
        'label map of another type',
        'has 4 bits a pixel, and is read with its labels times 17: save it with 8',
    ),
    'grey levels': Planted(
        rewrite(lambda labels: image(labels * 80)),
        'label outside',
        'have the labels 0, 80, 160, 240, and the 4 classes are 0 to 3: give each pixel the number of its class',
    ),
    'labels from 1': Planted(
        rewrite(lambda labels: image(labels + 1)),
        'label outside',
        r'have the labels 1, 2, 3, 4, and the 4 classes are 0 to 3: .* and reduce_zero_label \(False here\)',
    ),
    'one class more': Planted(
        lambda root: None,
        'label outside',
        r'have the labels 0, 1, 2, 3, and the 3 classes are 0 to 2: .* and reduce_zero_label \(False here\)',
        MAP_CLASSES[1:],
    ),
    'one class': Planted(
        rewrite(lambda labels: image(labels > 0)),
        'one label',
        'have the labels 0, 1, and there is one class, shape: name the background too',
        ('shape',),
        lambda labels: labels > 0,
    ),
    'nothing but background': Planted(
        rewrite(lambda labels: image(labels * 0)),
        'one label',
        'have the labels 0: of 4 classes only background is left; give each pixel the number of its class',
        truth=None,
    ),
    'all ignored': Planted(
        rewrite(lambda labels: image(labels * 0 + 255)),
        'one label',
        'have the labels 255; 255 is ignored: of 4 classes none is left',
        truth=None,
    ),
}


@pytest.mark.parametrize('name', PLANTED)
def test_a_fault_of_all_label_maps_is_named_refused_and_repaired(name, maps, root, tmp_path):
    case = PLANTED[name]
    before = {path.relative_to(root).with_suffix(''): np.array(Image.open(path)) for path in paths_of(root)}
    case.plant(root)
    maps.model.decode_head.num_classes = len(case.classes)
    for split in ('train', 'val', 'test'):
        maps[f'{split}_dataloader'].dataset.update(metainfo=dict(classes=case.classes), seg_map_suffix=case.suffix)
    refuses(maps, 'train', f'^the train data: .*{case.message}')
    splits = dataset_check.check_datasets(maps)
    assert case.kind in {fault.kind for fault in splits[0].faults}
    if case.kind == 'label map of colours':
        assert samples.plot_samples(splits, 'title').axes

    files = sorted((root / 'annotations').glob(f'*/*{case.suffix}'))
    if case.truth is None:
        return
    classes, repaired, notes = repair_maps(files, tmp_path / 'repaired', case.classes, case.colors)
    if 'one class' in name:
        assert (classes, repaired) == (['background', *case.classes], files)
    else:
        assert classes == list(case.classes)
        assert [path.relative_to(tmp_path / 'repaired').name for path in repaired] == [f'{p.stem}.png' for p in files]
    assert notes
    for source, path in zip(files, repaired, strict=True):
        truth = case.truth(before[source.relative_to(root).with_suffix('')])
        np.testing.assert_array_equal(np.array(Image.open(path)), truth)
    maps.model.decode_head.num_classes = len(classes)
    for split, folder in (('train', 'training'), ('val', 'validation'), ('test', 'validation')):
        dataset = maps[f'{split}_dataloader'].dataset
        dataset.update(metainfo=dict(classes=classes), seg_map_suffix='.png')
        dataset.data_prefix.seg_map_path = str(next(p.parent for p in repaired if p.parent.name == folder))
    data_checks.check_data(maps, 'train', 'val', 'test')
    assert kinds(maps) == []


# ---------------------------------------------------------------------------------------------- what training reads


def test_palettes_are_read_by_their_index(maps, root):
    rewrite(palette)(root)
    data_checks.check_data(maps, 'train', 'val')
    assert kinds(maps) == []
    maps.train_dataloader.dataset.pipeline[1].imdecode_backend = 'cv2'
    message = "have a palette, which imdecode_backend='cv2' of LoadAnnotations turns into colours: remove it"
    refuses(maps, 'train', message)
    assert ('train', 'label map of colours') in kinds(maps)


def test_maps_of_one_bit_and_of_small_numbers_of_16_bits_are_labels(maps, root):
    for write in (lambda labels: Image.fromarray(labels > 0), lambda labels: image(labels > 0, np.uint16)):
        maps.model.decode_head.num_classes = 2
        for split in ('train', 'val', 'test'):
            maps[f'{split}_dataloader'].dataset.metainfo.classes = BINARY
        rewrite(write)(root)
        data_checks.check_data(maps, 'train', 'val')
        assert kinds(maps) == []


def test_maps_of_16_bits_whose_65535_is_read_as_255(maps, root):
    rewrite(lambda labels: image(np.where(labels == 3, 65535, labels.astype(int)), np.uint16))(root)
    maps.model.decode_head.num_classes = 3
    for split in ('train', 'val', 'test'):
        maps[f'{split}_dataloader'].dataset.metainfo.classes = MAP_CLASSES[:3]
    data_checks.check_data(maps, 'train', 'val')
    assert kinds(maps) == []


def test_floating_point_labels(maps, root):
    for split in ('train', 'val', 'test'):
        maps[f'{split}_dataloader'].dataset.seg_map_suffix = '.tif'
    rewrite(lambda labels: image(labels, np.float32), '.tif')(root)
    data_checks.check_data(maps, 'train', 'val')
    path = root / 'annotations/training/000000000003.tif'
    image(np.full((64, 64), 0.5), np.float32).save(path)
    refuses(maps, 'train', f'{path} has the values 0.5 to 0.5, and training reads whole numbers from 0 to 255')


# ------------------------------------------------------------------------------------------------- reduce_zero_label


def reduce_zero(config: Config, classes: tuple[str, ...]) -> None:
    config.model.decode_head.num_classes = len(classes)
    for split in ('train', 'val', 'test'):
        config[f'{split}_dataloader'].dataset.update(reduce_zero_label=True, metainfo=dict(classes=classes))


def test_reduce_zero_label_for_maps_whose_0_is_a_class(maps, root, warnings):
    reduce_zero(maps, MAP_CLASSES)
    message = (
        'reduce_zero_label=True ignores the label 0 and makes 1 the first class, background, and triangle never '
        'occurs: set reduce_zero_label=False, or remove background from metainfo.classes'
    )
    refuses(maps, 'train', message)
    assert kinds(maps)[0] == ('train', 'zero label ignored')
    reduce_zero(maps, ('sky', 'road', 'car', 'tree'))  # without a telling name the last class may be rare
    data_checks.check_data(maps, 'train')
    (warning,) = warnings
    assert '1 of 4 classes have no pixel in the label maps: tree; reduce_zero_label=True ignores the label 0' in warning
    rewrite(lambda labels: image(labels > 0))(root)
    reduce_zero(maps, BINARY)
    for split in ('train', 'val'):
        refuses(maps, split, 'reduce_zero_label=True ignores the label 0: of 2 classes only background is left')


def test_reduce_zero_label_for_maps_whose_0_is_no_class(maps, root, warnings):
    reduce_zero(maps, MAP_CLASSES[1:])
    data_checks.check_data(maps, 'train', 'val', 'test')
    assert (kinds(maps), warnings) == ([], [])
    # A public data set may have a class background that is not the label 0, as LoveDA has.
    maps.train_dataloader.dataset = {
        **map_data(root, 'train'),
        'type': 'mmseg.LoveDADataset',
        'reduce_zero_label': True,
    }
    maps.train_dataloader.dataset.metainfo = None
    maps.train_dataloader.dataset.img_suffix = '.jpg'
    maps.model.decode_head.num_classes = 7
    data_checks.check_data(maps, 'train')
    (warning,) = warnings
    assert '4 of 7 classes have no pixel in the label maps: water' in warning
    assert 'reduce_zero_label=True ignores the label 0, which they have: if it is a class, set it to F' in warning


def test_classes_without_a_pixel(maps, root, warnings):
    rewrite(lambda labels: image(np.where(labels == 2, 1, labels)))(root)
    for _ in range(2):
        data_checks.check_data(maps, 'train', 'val')
    text = 'the train data: 1 of 4 classes have no pixel in the label maps: square'
    assert warnings == [text, label_map_checks.WARNED.format(split='train')]
    assert kinds(maps) == [('train', 'class never seen')]
    dataset = maps.train_dataloader.dataset
    maps.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[dataset, dataset])
    data_checks.check_data(maps, 'train')
    assert len(warnings) == 2  # one of them may have it


# -------------------------------------------------------------------------------------------------------------- labels


def label(path: Path, value: int) -> None:
    labels = np.array(Image.open(path))
    labels[0, 0] = value
    Image.fromarray(labels).save(path)


def test_labels_outside_of_the_classes(maps, root):
    reduce_zero(maps, MAP_CLASSES[1:])
    path = paths_of(root, 'training')[1]
    label(path, 255)
    data_checks.check_data(maps, 'train')
    label(path, 4)
    message = (
        f'{path}: 1 pixels have the label 3; the label maps have the labels 0, 1, 2, 3, 255 after reduce_zero_label, '
        'and the 3 classes are 0 to 2'
    )
    refuses(maps, 'train', message)
    data_checks.check_data(maps, 'val')
    data_checks.check_data(Config({**maps, 'resume': True}), 'train')  # they were read when the run began
    maps.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=maps.train_dataloader.dataset)
    maps.model = dict(type='SegTTAModel', module=dict(decode_head=[dict(num_classes=3)]))  # a list in cascades
    refuses(maps, 'train', message)


def test_labels_of_a_data_set_without_names_of_classes(maps):
    maps.train_dataloader.dataset.metainfo = None
    data_checks.check_data(maps, 'train')
    maps.model.decode_head.update(num_classes=3, ignore_index=3)
    data_checks.check_data(maps, 'train')
    maps.model.decode_head.update(ignore_index=255)
    refuses(maps, 'train', 'have the labels 0, 1, 2, 3, and the 3 classes are 0 to 2')


def test_label_maps_that_cannot_be_read(maps, root):
    path = paths_of(root, 'training')[1]
    path.write_bytes(b'not an image')
    refuses(maps, 'train', f'the label map {path} cannot be read: ')
    path.unlink()
    refuses(maps, 'train', f'{path} of the image .*000002.jpg does not exist: restore them, or remove the images')


def test_label_maps_of_another_size_than_their_image(maps, root):
    for path in paths_of(root, 'training'):
        Image.open(path).resize((32, 48), 0).save(path)
    message = r'000001.png has 32 x 48 pixels, its image has 64 x 64: give both the same size \(and 11 more like it\)'
    refuses(maps, 'train', message)
    assert kinds(maps) == [('train', 'wrong size')] * 12


def test_the_size_is_that_after_the_turn_of_exif(maps, root):
    path, label_map = root / 'images/training/000000000001.jpg', paths_of(root, 'training')[0]
    exif = Image.Exif()
    exif[274] = 6
    with Image.open(path) as turned:
        cropped = turned.crop((0, 0, 64, 48))
    path.unlink()  # a link
    cropped.save(path, exif=exif)
    with Image.open(label_map) as read:
        labels = read.copy()
    labels.crop((0, 0, 64, 48)).save(label_map)
    refuses(maps, 'train', f'{label_map} has 64 x 48 pixels, its image has 48 x 64')
    labels.crop((0, 0, 48, 64)).save(label_map)
    data_checks.check_data(maps, 'train')


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
    paths = paths_of(root, 'training')
    other = Config(copy.deepcopy(maps.to_dict()))
    assert [read_by(maps), read_by(maps), read_by(other)] == [len(paths), 0, 0]
    os.utime(paths[3], ns=(0, 0))
    assert [read_by(maps), read_by(maps)] == [len(paths), 0]
    paths[3].unlink()
    (root / 'images/training' / f'{paths[3].stem}.jpg').unlink()
    assert [read_by(maps), read_by(maps)] == [len(paths) - 1, 0]
    label(paths[0], 255)
    other.model.decode_head.ignore_index = 254  # another question
    refuses(other, 'train', '1 pixels have the label 255')
    label(paths[0], 4)
    for _ in range(2):  # an error is not remembered
        refuses(maps, 'train', 'the labels 0, 1, 2, 3, 4, and the 4 classes are 0 to 3')
    label(paths[0], 1)

    (records,) = (tmp_path / 'cache/pvt_mm').iterdir()
    records.write_bytes(b'\xff\xff')  # not text
    assert [read_by(maps), read_by(maps)] == [len(paths) - 1, len(paths) - 1]
    for unwritable in (str(paths[0]), '~'):  # a file; a folder that the system does not know
        monkeypatch.setenv('XDG_CACHE_HOME', unwritable)
        assert [read_by(maps), read_by(maps)] == [len(paths) - 1, len(paths) - 1]
    assert not list(root.rglob('*checked_labels*'))  # the data is left as it is
    assert not Path('~').exists()


# --------------------------------------------------------------------------------------------------------------- files


def test_images_with_another_suffix(maps, root):
    images = sorted((root / 'images/training').iterdir())
    for path in images:
        path.rename(path.with_suffix('.JPG'))
    refuses(
        maps, 'train', r'training has no image that ends in .jpg \(img_suffix\), but 12 that end in .JPG: set img_suff'
    )
    assert ('train', 'no image') in kinds(maps)
    maps.train_dataloader.dataset.img_suffix = '.JPG'
    data_checks.check_data(maps, 'train')
    for path in images[:8]:
        path.with_suffix('.JPG').rename(path.with_suffix('.jpeg'))
    message = r'8 images with label maps, such as .*01.jpeg, end in .jpeg and would be left out: rename them to .JPG'
    refuses(maps, 'train', message)
    assert ('train', 'image left out') in kinds(maps)


def test_an_empty_validation_folder(maps, root):
    for path in (root / 'images/validation').iterdir():
        path.unlink()
    refuses(maps, 'val', 'the val data: .*/images/validation has no image$')
    assert ('val, test', 'no image') in kinds(maps)


def test_label_maps_with_another_suffix(maps, root):
    for path in paths_of(root, 'training'):
        path.rename(path.with_name(f'{path.stem}_mask.png'))
    message = (
        r"000001.png of the image .* does not exist, and 11 more of the 12 images have none: the file's name ends "
    )
    refuses(maps, 'train', rf"{message}in _mask.png: set seg_map_suffix='_mask.png'")
    found = kinds(maps)
    assert found.count(('train', 'missing label map')) == 12
    maps.train_dataloader.dataset.seg_map_suffix = '_mask.png'
    data_checks.check_data(maps, 'train')


def test_label_maps_without_an_image(maps, root, warnings):
    (root / 'images/training/000000000003.jpg').unlink()
    data_checks.check_data(maps, 'train')
    assert warnings[0].startswith(f'the train data: {root}/images/training/000000000003.jpg of the label map {root}')
    assert kinds(maps) == [('train', 'missing image')]


@pytest.mark.parametrize(
    ('names', 'message'),
    [
        (
            ['000000000001', '000000000002.jpg'],
            r'02.jpg.jpg \(line 2 of .*\) does not exist: list images without their',
        ),
        (['000000000001', '', '000000000002'], r'training/.jpg \(line 2 of .*\) does not exist: correct the list'),
        (['a', 'b', 'c'], r'training/a.jpg \(line 1 of .*list.txt and 2 more\) does not exist'),
        ([], 'list.txt lists no image'),
    ],
)
def test_lists_of_images(names, message, maps, root):
    (root / 'list.txt').write_text('\n'.join(names))
    maps.train_dataloader.dataset.ann_file = 'list.txt'
    refuses(maps, 'train', message)
    (root / 'list.txt').write_text('000000000001\r\n000000000002\r\n000000000003\r\n')
    data_checks.check_data(maps, 'train')


def test_images_that_are_trained_on_and_evaluated(maps, root, warnings):
    shutil.copy(root / 'annotations/training/000000000001.png', root / 'annotations/validation/other.png')
    (root / 'images/validation/other.jpg').symlink_to((root / 'images/training/000000000001.jpg').resolve())
    data_checks.check_data(maps, 'val')
    (warning,) = warnings
    assert warning.startswith('1 of 7 images of the val data are in the train data too, such as ')


# ------------------------------------------------------------------------------------------------------------- classes


def test_classes_that_differ_between_splits(maps, tmp_path):
    maps.val_dataloader.dataset.metainfo.classes = ('background', 'square', 'circle', 'triangle')
    refuses(
        maps,
        'val',
        'the classes of the train and the val data differ in order: those of the train data are background, circle, sq',
    )
    assert ('val', 'other classes') in kinds(maps)  # the test data has the same files, but other classes
    maps.val_dataloader.dataset.metainfo.classes = ('background', 'square', 'circle', 'star')
    refuses(maps, 'val', 'differ: the train data has no star, and the val data has no triangle; give both the same')
    maps.val_dataloader.dataset.metainfo.classes = 'classes.txt'
    with pytest.raises(InputError, match=r"the string 'classes.txt': write a tuple, \('classes.txt',\) for one class"):
        dataset_check.check_datasets(maps)
    path = tmp_path / 'classes.txt'  # MMEngine reads a file of names
    path.write_text('\n'.join(MAP_CLASSES))
    maps.val_dataloader.dataset.metainfo.classes = str(path)
    data_checks.check_data(maps, 'train', 'val')
    maps.val_dataloader.dataset.metainfo.classes = ('background', 'square', 'circle', 'circle')
    refuses(maps, 'val', 'metainfo.classes has circle twice: name each class once')


def test_own_classes_for_the_type_of_a_public_data_set(maps):
    maps.train_dataloader.dataset.type = 'ADE20KDataset'
    message = "type='BaseSegDataset'"
    refuses(maps, 'train', message)
    with pytest.raises(InputError, match=message):
        dataset_check.check_datasets(maps)


def test_predicting_needs_no_label_maps(maps, root):
    shutil.rmtree(root / 'annotations/validation')
    refuses(maps, 'test', 'annotations/validation does not exist')
    written = Config(copy.deepcopy(maps.to_dict()))
    written.test_evaluator.format_only = True
    dataset = maps.test_dataloader.dataset
    del dataset.pipeline[1], dataset.data_prefix['seg_map_path']
    for config in (written, maps):
        config.train_dataloader = config.val_dataloader = None
        data_checks.check_data(config, 'test')
        (split,) = dataset_check.check_datasets(config)
        assert (split.faults, len(split.items)) == ([], 6)
        assert split.remarks == ['label maps are not read: predictions can be written, not evaluated']
