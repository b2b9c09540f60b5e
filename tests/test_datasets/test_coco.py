"""Faults of COCO exports are named and repaired; valid annotations are left as they are."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from pvt_mm.datasets.coco import find_faults, read_coco, repair
from pvt_mm.datasets.coco.files import ImageFiles, upright_size
from pvt_mm.datasets.coco.masks import decode_run_lengths, mask_area, mask_box, mask_fault
from pvt_mm.utils.errors import InputError
from tests.coco_faults import FAULTS, HOPELESS, MASK_FAULTS, add_project


@pytest.fixture(scope='module')
def valid(shapes) -> dict:
    return read_coco(shapes / 'annotations/instances_train2017.json')


@pytest.fixture
def content(valid) -> dict:
    return copy.deepcopy(valid)


@pytest.fixture(scope='module')
def folder(shapes) -> Path:
    return shapes / 'train2017'


def test_valid_annotations_have_no_faults_and_stay_as_they_are(valid, folder):
    before = copy.deepcopy(valid)
    assert list(find_faults(valid, folder, classes=('circle', 'square', 'triangle'), masks=True)) == []
    assert repair(valid, folder) == (before, [])
    assert valid == before


@pytest.mark.parametrize('name', FAULTS)
def test_faults_are_named_and_repaired(name, content, folder):
    kind, plant = FAULTS[name]
    plant(content)
    before = repr(content)
    assert kind in {fault.kind for fault in find_faults(content, folder)}
    repaired, lines = repair(content, folder)
    assert list(find_faults(repaired, folder)) == []
    assert lines
    assert all('\n' not in line for line in lines)
    assert repr(content) == before
    json.dumps(repaired, allow_nan=False)


@pytest.mark.parametrize('name', HOPELESS)
def test_what_cannot_be_repaired_is_named(name, content, folder):
    kind, plant = HOPELESS[name]
    plant(content)
    assert kind in {fault.kind for fault in find_faults(content, folder)}
    with pytest.raises(InputError):
        repair(content, folder)


@pytest.mark.parametrize('name', MASK_FAULTS)
def test_faults_of_masks(name, content, folder):
    MASK_FAULTS[name](content)
    assert 'bad mask' in {fault.kind for fault in find_faults(content, folder, masks=True)}
    repaired, _ = repair(content, folder)
    assert list(find_faults(repaired, folder)) == []  # boxes are left


def test_repaired_values(content, folder, valid):
    """What is filled in is what the export should have said."""
    for name in (
        'corners',
        'string box',
        'string image ids',
        'string category ids',
        'no width and height',
        'backslashes',
    ):
        changed = copy.deepcopy(valid)
        FAULTS[name][1](changed)
        repaired, _ = repair(changed, folder)
        assert repaired == valid, name
    for annotation in content['annotations']:
        del annotation['bbox'], annotation['area'], annotation['iscrowd']
    repaired, lines = repair(content, folder)
    assert len(lines) == 3
    for ours, true in zip(repaired['annotations'], valid['annotations'], strict=True):
        assert ours['bbox'] == pytest.approx(true['bbox'], abs=1.5)
        assert ours['area'] == pytest.approx(true['area'], rel=0.2, abs=8)


def test_categories_are_written_in_the_order_of_the_classes(content, folder):
    content['categories'][0]['name'] = ' Circle '
    del content['categories'][2]
    content['annotations'] = [one for one in content['annotations'] if one['category_id'] != 3]
    names = {one['id']: one['name'] for one in content['categories']}
    repaired, lines = repair(content, folder, classes=('square', 'triangle', 'circle'))
    assert [one['name'] for one in repaired['categories']] == ['square', 'triangle', 'circle']
    written = {one['id']: one['name'] for one in repaired['categories']}
    for before, after in zip(content['annotations'], repaired['annotations'], strict=True):
        assert written[after['category_id']] == names[before['category_id']].strip().lower()
    assert any('another order' in line for line in lines)
    with pytest.raises(InputError, match='has the category Circle, and the classes are square'):
        repair(content, folder, classes=('square', 'triangle'))


def test_the_project_is_no_fault_where_it_is_not_trained_on(content, folder):
    add_project(content)
    assert list(find_faults(content, folder, classes=('circle', 'square', 'triangle'))) == []
    content['annotations'][0]['category_id'] = 0  # then it is a class
    assert list(find_faults(content, folder)) == []


def test_images_to_predict_on_need_no_objects(content, folder):
    del content['annotations'], content['categories']
    assert list(find_faults(content, folder, annotated=False)) == []
    repaired, lines = repair(content, folder, classes=('circle',), annotated=False)
    assert [one['name'] for one in repaired['categories']] == ['circle']
    assert (repaired['annotations'], len(lines)) == ([], 1)
    assert repair(content, folder, annotated=False)[0]['categories'] == []


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
def test_encodings(encoding, valid, tmp_path):
    (tmp_path / 'a.json').write_text(json.dumps(valid), encoding=encoding)
    assert read_coco(tmp_path / 'a.json') == valid


@pytest.mark.parametrize(
    ('text', 'message'),
    [('', 'is empty'), ('{"images": [', 'is not json'), ('[1]', 'contains a list'), ('[' * 100_000, 'is not json')],
)
def test_files_that_are_no_objects(text, message, tmp_path):
    (tmp_path / 'a.json').write_text(text)
    with pytest.raises(InputError, match=rf'a.json .*{message}'):
        read_coco(tmp_path / 'a.json')
    with pytest.raises(InputError, match=r'gone.json cannot be read'):
        read_coco(tmp_path / 'gone.json')


@pytest.mark.parametrize(
    ('name', 'found'),
    [
        ('a b.jpg', 'a b.jpg'),
        ('sub\\c.png', 'sub/c.png'),
        ('C:\\data\\sub\\c.png', 'sub/c.png'),
        ('/home/someone/a%20b.jpg', 'a b.jpg'),
        ('images/sub/c.png', 'sub/c.png'),
        ('http://host/data/local-files/?d=sub/c.png', 'sub/c.png'),
        ('C.PNG', 'sub/c.png'),  # the one below the folder
        ('c.jpg', 'sub/c.png'),
        ('e\u0301.jpg', '\u00e9.jpg'),  # as macOS writes it
        ('d.jpg', None),  # there are two
        ('other/d.jpg', 'other/d.jpg'),
        ('gone.jpg', None),
        ('a\0b', None),
    ],
)
def test_finding_images(name, found, tmp_path):
    for path in ('a b.jpg', 'sub/c.png', '\u00e9.jpg', 'sub/d.jpg', 'other/d.jpg'):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    assert ImageFiles(tmp_path).find(name) == found


def test_sizes_of_rotated_images(content, folder, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (32, 64)).save(tmp_path / 'a.jpg', exif=exif)
    assert upright_size(tmp_path / 'a.jpg') == (32, 64)
    image = dict(content['images'][0], file_name='a.jpg', width=32, height=64)
    objects = [dict(one, bbox=[40, 4, 8, 8]) for one in content['annotations'] if one['image_id'] == image['id']]
    content.update(images=[image], annotations=objects)
    assert 'wrong size' in {fault.kind for fault in find_faults(content, tmp_path)}
    repaired, lines = repair(content, tmp_path)
    assert repaired['images'][0] == dict(image, width=64, height=32)
    assert [one['bbox'] for one in repaired['annotations']] == [[40, 4, 8, 8]] * len(objects)
    assert 'EXIF' in lines[0]


def test_images_of_another_size_are_left_out(content, folder):
    number = sum(one['image_id'] == content['images'][2]['id'] for one in content['annotations'])
    content['images'][2].update(width=640, height=640)
    repaired, lines = repair(content, folder)
    assert len(repaired['images']) == 11
    assert lines[1].startswith(f'{number} of ')


@pytest.mark.parametrize(
    ('mask', 'fault'),
    [
        ([[0, 0, 4, 0, 4, 4]], ''),
        ([[0, 0, 4, 0, 4]], 'not a list of three or more x, y'),
        ([[0, 0, 4, 0, 4, float('nan')]], 'not a number'),
        ([[0, 0, 4, 0, 4, True]], 'not a number'),
        ([[0, 0, 4, 0, 4, '1']], 'not a number'),
        ([[20, 0, 24, 0, 24, 4]], 'outside the image'),
        (dict(size=[8, 16], counts=[100, 28]), ''),
        (dict(size=[8, 16], counts=[100, 27]), 'of 127 pixels, and the image has 128'),
        (dict(size=[16, 8], counts=[100, 28]), 'for the size [16, 8]'),
        (dict(size=8, counts=[100, 28]), 'for the size 8'),
        ([[0, 0, 1e9, 0, 4, 4]], 'not a number'),
        (dict(size=[8, 16], counts='0'), 'of 0 pixels'),
        (dict(size=[8, 16], counts='T~'), 'is invalid'),
        (dict(size=[8, 16], counts='T'), 'truncated'),
        ('polygon', 'neither polygons nor run lengths'),
    ],
)
def test_masks_that_do_not_decode(mask, fault):
    assert fault in mask_fault(mask, (8, 16))
    assert bool(fault) == bool(mask_fault(mask, (8, 16)))


def test_run_lengths_area_and_box_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    for density in (0, 0.02, 0.5, 1):
        mask = (rng.random((8, 16)) < density).astype(np.uint8)
        encoded = coco_mask.encode(np.asfortranarray(mask))
        counts = decode_run_lengths(encoded['counts'])
        assert np.repeat(np.arange(len(counts)) % 2, counts).reshape(16, 8).T.tolist() == mask.tolist()
        assert mask_fault(encoded, (8, 16)) == ''
        assert mask_area(encoded) == mask.sum()
        assert mask_box(encoded, (8, 16)) == (coco_mask.toBbox(encoded).tolist() if mask.any() else None)
    assert mask_area([[0, 0, 4, 0, 4, 4, 0, 4]]) == 16
