"""Faults of COCO exports are named and repaired; valid annotations are left as they are."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from PIL import Image
from pycocotools import mask as coco_mask

from pvt_mm.datasets.coco import find_faults, read_coco, repair
from pvt_mm.datasets.coco.files import ImageFiles, upright_size
from pvt_mm.datasets.coco.masks import area_and_box, decode_run_lengths, mask_fault
from pvt_mm.utils.errors import InputError
from tests.coco_faults import ACCEPTED, FAULTS, HOPELESS, MASK_FAULTS, add_project, corners, each


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


@pytest.mark.parametrize('name', list(ACCEPTED)[:-2])
def test_what_is_valid_is_left_as_it_is(name, content, folder):
    kind, plant = ACCEPTED[name]
    plant(content)
    assert {fault.kind for fault in find_faults(content, folder)} == ({kind} if kind else set())
    if name == 'a few are ignored':  # COCO's evaluation knows iscrowd alone
        content['annotations'][3].pop('ignore')
        before, content['annotations'][3]['ignore'] = copy.deepcopy(content), 1
        before['annotations'][3]['iscrowd'] = 1
        assert repair(content, folder)[0] == before
    else:
        assert repair(content, folder) == (content, [])


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
    assert {'bad mask', 'empty mask'} & {fault.kind for fault in find_faults(content, folder, masks=True)}
    repaired, _ = repair(content, folder)
    assert list(find_faults(repaired, folder)) == []  # boxes are left


def test_repaired_values(content, folder, valid):
    """What is filled in is what the export should have said."""
    for name in (
        'corners',
        'string box',
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
    del content['categories'][2]
    content['annotations'] = [one for one in content['annotations'] if one['category_id'] != 3]
    names = {one['id']: one['name'] for one in content['categories']}
    repaired, lines = repair(content, folder, classes=('square', 'triangle', 'circle'))
    assert [one['name'] for one in repaired['categories']] == ['square', 'triangle', 'circle']
    written = {one['id']: one['name'] for one in repaired['categories']}
    for before, after in zip(content['annotations'], repaired['annotations'], strict=True):
        assert written[after['category_id']] == names[before['category_id']]
    assert any('another order' in line for line in lines)
    content['categories'][0]['name'] = 'Circle'
    with pytest.raises(InputError, match=r"has the category Circle, and .*did you mean 'circle'"):
        repair(content, folder, classes=('square', 'triangle', 'circle'))
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
    touch(tmp_path, 'a b.jpg', 'sub/c.png', '\u00e9.jpg', 'sub/d.jpg', 'other/d.jpg')
    assert ImageFiles(tmp_path, [name]).find(name) == found


def touch(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).touch()


@pytest.mark.parametrize(
    ('names', 'found'),
    [
        (['a/1.jpg', 'b/9.jpg'], ['a/1.jpg', None]),  # another folder's image is another image
        (['/x/a/1.jpg', '/x/b/9.jpg'], ['a/1.jpg', None]),
        (['/x/a/1.jpg', '/x/c/9.jpg'], ['a/1.jpg', 'c/9.jpg']),
        (['x/1.jpg', 'y/1.jpg'], [None, None]),
        (['/x/1.jpg', '/y/9.jpg'], [None, None]),
        (['1.jpg', '9.jpg'], ['a/1.jpg', 'c/9.jpg']),
        (['9.jpg', '9.png'], ['c/9.jpg', None]),
    ],
)
def test_names_that_differ_in_folders_are_not_mixed_up(names, found, tmp_path):
    touch(tmp_path, 'a/1.jpg', 'c/9.jpg')
    files = ImageFiles(tmp_path, names)
    assert [files.find(name) for name in names] == found


@pytest.fixture
def turned(tmp_path) -> dict:
    """One image of 64 x 32 pixels in the file, which is 32 x 64 upright, and the json says 64 x 32."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (64, 32)).save(tmp_path / 'a.jpg', exif=exif)
    image = dict(id=1, file_name='a.jpg', width=64, height=32)
    objects = [dict(id=i, image_id=1, category_id=1, bbox=[4, 4, 8, 8], area=64, iscrowd=0) for i in (1, 2)]
    return dict(images=[image], annotations=objects, categories=[dict(id=1, name='a')])


def test_sizes_of_rotated_images_whose_boxes_are_upright(turned, tmp_path):
    assert upright_size(tmp_path / 'a.jpg') == (64, 32)
    turned['annotations'][0]['bbox'] = [4, 40, 8, 8]
    (fault,) = [fault for fault in find_faults(turned, tmp_path) if fault.kind == 'wrong size']
    assert 'exchange the two if the boxes fit the image so, else remove the EXIF orientation' in fault.text
    repaired, lines = repair(turned, tmp_path)
    assert repaired == {**turned, 'images': [dict(turned['images'][0], width=32, height=64)]}
    assert 'EXIF' in lines[0]


def test_boxes_of_images_before_their_rotation_are_refused(turned, tmp_path):
    turned['annotations'][0]['bbox'] = [40, 4, 8, 8]
    with pytest.raises(InputError, match=r'1 of 2 boxes exceed their images turned upright .* 0 exceed them before'):
        repair(turned, tmp_path)


def test_sizes_are_those_that_the_loader_gives(turned, tmp_path):
    load = LoadImageFromFile(color_type='color_ignore_orientation')
    assert upright_size(tmp_path / 'a.jpg', load) == (32, 64)
    assert list(find_faults(turned, tmp_path, load=load)) == []


@pytest.mark.parametrize('evidence', ['mask', 'area', 'all boxes'])
def test_corners(evidence, content, valid, folder):
    for one in content['annotations']:
        one['bbox'] = corners(one)
        if evidence != 'mask':
            del one['segmentation']
        if evidence == 'all boxes':
            del one['area']
        elif evidence == 'area':
            one['area'] = (one['bbox'][2] - one['bbox'][0]) * (one['bbox'][3] - one['bbox'][1])
    repaired, lines = repair(content, folder)
    assert [one['bbox'] for one in repaired['annotations']] == [one['bbox'] for one in valid['annotations']]
    assert 'had [x1, y1, x2, y2] for a bbox' in lines[0]


def test_boxes_of_which_one_is_no_corners_are_left_as_they_are(content, folder):
    for one in content['annotations'][1:]:
        one['bbox'] = corners(one)
    assert 'corners' not in {fault.kind for fault in find_faults(content, folder)}


def large_boxes(content: dict, number: int) -> None:
    """Boxes that may be corners, of which some exceed their image."""
    for i, one in enumerate(content['annotations']):
        one['bbox'] = [4, 4, 63 if i < number else 50, 50]
        one['segmentation'] = []
        one['area'] = 2000


@pytest.mark.parametrize('evidence', ['mask', 'area', ''])
def test_large_boxes_that_exceed_the_image_are_no_corners(evidence, content, folder):
    large_boxes(content, 2)
    for one in content['annotations']:
        x, y, w, h = one['bbox']
        if evidence == 'mask':
            one['segmentation'] = [[x, y, x + w, y, x + w, y + h]]
        elif evidence == 'area':
            one['area'] = w * h
    if evidence:
        assert repair(content, folder) == (content, [])
        assert {fault.kind for fault in find_faults(content, folder)} == {'box beyond the border'}
    else:
        number = len(content['annotations'])
        with pytest.raises(InputError, match=f'2 of {number} boxes exceed .*and all may be'):
            repair(content, folder)
        assert 'other boxes' in {fault.kind for fault in find_faults(content, folder)}


def test_boxes_of_zeros_are_those_of_the_masks(content, valid, folder):
    each('bbox', [0, 0, 0, 0])(content)
    repaired, _ = repair(content, folder)
    for ours, true in zip(repaired['annotations'], valid['annotations'], strict=True):
        assert ours['bbox'] == pytest.approx(true['bbox'], abs=1.5)


def test_objects_of_an_image_that_is_listed_twice_are_merged(content, valid, folder):
    content['images'].append(dict(content['images'][0], id=99))
    objects = [one for one in content['annotations'] if one['image_id'] == content['images'][0]['id']]
    content['annotations'] += [dict(one, id=1000 + i, image_id=99) for i, one in enumerate(objects)]
    content['annotations'].append(dict(objects[0], id=2000, image_id=99, bbox=[1, 1, 9, 9]))
    repaired, lines = repair(content, folder)
    assert repaired['annotations'] == [*valid['annotations'], dict(objects[0], id=2000, bbox=[1, 1, 9, 9])]
    assert repaired['images'] == valid['images']
    assert lines[1].startswith(f'{len(objects)} of ')


def test_the_few_objects_without_a_mask_are_left_out_where_masks_are_learnt(content, folder):
    first = content['annotations'][0]
    content['annotations'] += [{**first, 'id': 1000 + i} for i in range(150)]
    content['annotations'][0]['segmentation'] = [[1, 1, 2, 2]]
    repaired, lines = repair(content, folder, masks=True)
    assert repaired['annotations'] == content['annotations'][1:]
    assert 'have no valid mask' in lines[-1]
    for one in content['annotations'][:20]:
        one['segmentation'] = []
    name = content['images'][0]['file_name']
    with pytest.raises(InputError, match=f'have no valid mask, such as annotation {first["id"]} of {name}'):
        repair(content, folder, masks=True)


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
        ([[20, 0, 24, 0, 24, 4]], 'outside of the image'),
        ([[20, 0, 24, 0, 24, 4], [0, 0, 4, 0, 4, 4]], ''),  # a part beyond the border
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
        ys, xs = mask.nonzero()
        box = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1] if mask.any() else [0, 0, 0, 0]
        for one in (encoded, dict(size=[8, 16], counts=counts)):
            assert area_and_box(one, (8, 16)) == (mask.sum(), box)
    assert area_and_box([[0, 0, 4, 0, 4, 4, 0, 4], [2, 2, 6, 2, 6, 6, 2, 6]], (8, 16)) == (28, [0, 0, 6, 6])
