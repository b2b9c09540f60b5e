"""The user's own data: each layout gives the images and labels of the shapes, and what is wrong is one line."""

import functools
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from mmseg.datasets import BaseSegDataset, LoadAnnotations
from PIL import Image

import tests.layouts as layouts
from pvt_mm.datasets import ImageFolder
from pvt_mm.datasets.own_data import OwnData, find_data
from pvt_mm.datasets.own_data.data import RECIPES
from pvt_mm.datasets.own_data.splitting import choose_val
from pvt_mm.datasets.shapes import CLASSES
from pvt_mm.utils.errors import InputError
from tests.conftest import ROOT
from tests.layouts import Layout, copy, key, read_shapes, write_text

# The layouts that have splits of their own, in which the shapes' train and val stay what they are.
ONE_SPLIT = ('cvat', 'label_studio', 'label_studio_local', 'one_json', 'flat_masks', 'one_folder')

# Data sets without transforms, and without collecting garbage as they are built, which takes half a second.
UNSERIALIZED = dict(pipeline=[], serialize_data=False)


def digests(root: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in root.rglob('*') if path.is_file()}


def lay_out(layout: Layout, shapes: Path, to: Path) -> list[str]:
    to.mkdir(parents=True)
    return layout(shapes, to)


def find(layout: Layout, shapes: Path, tmp_path: Path, **options) -> OwnData:
    paths = lay_out(layout, shapes, tmp_path / 'data')
    before = digests(tmp_path / 'data') | digests(shapes)
    data = find_data(paths, tmp_path / 'out', **options)
    assert digests(tmp_path / 'data') | digests(shapes) == before
    return data


def read_coco(data: OwnData) -> dict[str, dict]:
    """Returns the objects of each image of each split, by the image's content, as MMDetection's data set has them."""
    found = {}
    for split, settings in data.splits.items():
        dataset = CocoDataset(
            metainfo=dict(classes=data.classes),
            filter_cfg=dict(filter_empty_gt=split == 'train'),
            test_mode=split != 'train',
            **UNSERIALIZED,
            **settings,
        )
        assert dataset.metainfo['classes'] == data.classes
        found[split] = {
            key(info['img_path']): sorted(
                (data.classes[one['bbox_label']], one['ignore_flag'], one['bbox'], str(one.get('mask')))
                for one in info['instances']
            )
            for info in map(dataset.get_data_info, range(len(dataset)))
        }
        assert data.counts[split] == len(dataset)
    return found


def read_label_maps(data: OwnData) -> dict[str, dict]:
    found = {}
    for split, settings in data.splits.items():
        dataset = BaseSegDataset(metainfo=dict(classes=data.classes), **UNSERIALIZED, **settings)
        load = LoadAnnotations()
        found[split] = {
            key(info['img_path']): load(info)['gt_seg_map'].tolist()
            for info in map(dataset.get_data_info, range(len(dataset)))
        }
        assert data.counts[split] == len(dataset)
    return found


def read_folders(data: OwnData) -> dict[str, dict]:
    found = {}
    for split, settings in data.splits.items():
        dataset = ImageFolder(metainfo=dict(classes=data.classes), **UNSERIALIZED, **settings)
        infos = [dataset.get_data_info(i) for i in range(len(dataset))]
        found[split] = {key(info['img_path']): data.classes[info['gt_label']] for info in infos}
        assert data.counts[split] == len(dataset)
    return found


READERS = dict(coco=read_coco, label_maps=read_label_maps, folders=read_folders)


@functools.cache
def truth(shapes: Path, kind: str) -> dict[str, dict]:
    """Returns the same of the shapes as they are."""
    if kind != 'coco':
        found = {'train': {}, 'val': {}}
        for shape in read_shapes(shapes):
            if kind == 'folders':
                found[shape.split][key(shape.crop)] = shape.crop_class
            else:
                found[shape.split][key(shape.image)] = cv2.imread(str(shape.label_map), 0).tolist()
        return found
    splits = {
        split: dict(
            ann_file=str(shapes / f'annotations/instances_{split}2017.json'),
            data_prefix=dict(img=str(shapes / f'{split}2017')),
        )
        for split in ('train', 'val')
    }
    return read_coco(OwnData('coco', CLASSES, splits, dict(train=12, val=6)))


@pytest.mark.parametrize('name', layouts.LAYOUTS)
def test_a_layout_gives_the_images_and_labels_of_the_shapes(name, shapes, tmp_path):
    data = find(layouts.LAYOUTS[name], shapes, tmp_path)
    found, expected = READERS[data.kind](data), truth(shapes, data.kind)
    if name == 'roboflow_folders':  # which has no circles to validate
        expected = expected | dict(val={image: of for image, of in expected['val'].items() if of != CLASSES[0]})
    names = CLASSES if data.kind != 'label_maps' else layouts.MAP_CLASSES
    assert data.classes == (tuple(f'class_{i}' for i in range(4)) if name == 'flat_masks' else names)
    if name in ONE_SPLIT:
        assert found['train'] | found['val'] == expected['train'] | expected['val']
        assert not found['train'].keys() & found['val'].keys()
        assert data.counts == dict(train=14, val=4)
    else:
        assert found.pop('test', found['val']) == expected['val']
        assert found == expected
    assert data.has_masks == (data.kind == 'coco')
    assert f'{data.counts["train"]} images to train, {data.counts["val"]} to validate' in data.notes[0]
    for path in (value for one in data.splits.values() for value in (one['ann_file'], *one['data_prefix'].values())):
        assert os.path.isabs(path) or data.kind == 'folders'


def test_the_kind_chooses_among_several_layouts_in_one_folder(shapes, tmp_path):
    for kind, read in READERS.items():
        data = find_data([str(shapes)], tmp_path / kind, kind=kind)
        assert data.kind == kind
        assert read(data) == truth(shapes, kind)


def test_valid_annotations_are_used_where_they_are(shapes, tmp_path):
    data = find_data([str(shapes)], tmp_path / 'out', kind='coco')
    assert data.splits['train'] == dict(
        ann_file=str(shapes / 'annotations/instances_train2017.json'),
        data_prefix=dict(img=f'{shapes / "train2017"}/'),
    )
    assert not (tmp_path / 'out').exists()


# ---- splitting


def test_the_split_depends_on_the_names_and_the_seed_alone(shapes, tmp_path):
    first = find_data(lay_out(layouts.one_json, shapes, tmp_path / 'a'), tmp_path / 'out_a')
    path = Path(lay_out(layouts.one_json, shapes, tmp_path / 'b')[0])
    content = json.loads(path.read_text())
    content['images'].reverse()
    path.write_text(json.dumps(content))
    again = find_data([str(path)], tmp_path / 'out_b')
    other = find_data([str(path)], tmp_path / 'out_c', seed=1)
    names = [
        {image['file_name'] for image in json.loads(Path(data.splits['val']['ann_file']).read_text())['images']}
        for data in (first, again, other)
    ]
    assert (
        names[0]
        == names[1]
        == {
            'train_000000000007.jpg',
            'train_000000000008.jpg',
            'train_000000000011.jpg',
            'val_000000000001.jpg',
        }
    )
    assert names[0] != names[2]


def test_augmentations_of_one_photograph_stay_in_one_split():
    images = {f'images/{i}_jpg.rf.{j:032x}.jpg': {i % 2} for i in range(10) for j in range(3)}
    for seed in range(20):
        val = choose_val(images, seed)
        assert len(val) == 6
        assert {name.split('.rf.')[0] for name in val}.isdisjoint(name.split('.rf.')[0] for name in {*images} - val)


def test_each_class_is_trained_and_validated_if_it_has_two_images():
    # 0 is in all images, the others in two each, and the last in one.
    images = {f'{i}.jpg': {0, 1 + i // 2} for i in range(40)} | {'rare.jpg': {0, 99}}
    for seed in range(20):
        val = choose_val(images, seed)
        for label in range(21):
            assert {name in val for name, labels in images.items() if label in labels} == {True, False}
        assert 'rare.jpg' not in val


def test_images_whose_classes_are_in_no_other_cannot_be_split(shapes, tmp_path):
    assert choose_val({'a.jpg': {0}, 'b.jpg': {1}}, 0) == set()
    assert choose_val({'a.jpg': {0}, 'b.jpg': {0}}, 0) in ({'a.jpg'}, {'b.jpg'})
    one = read_shapes(shapes)[0]
    copy(one.image, tmp_path / 'data/images/a.jpg')
    copy(one.label_map, tmp_path / 'data/masks/a.png')
    with pytest.raises(InputError, match='data has one image with a label map'):
        find_data([str(tmp_path / 'data')], tmp_path / 'out')


def test_copies_of_one_photograph_in_train_and_val_are_reported(shapes, tmp_path):
    root = Path(lay_out(layouts.roboflow, shapes, tmp_path / 'data')[0])
    path = root / 'valid/_annotations.coco.json'
    content = json.loads(path.read_text())
    name = content['images'][0]['file_name']
    content['images'][0]['file_name'] = f'train_000000000001_jpg.rf.{"0" * 32}.jpg'
    (root / 'valid' / name).rename(root / 'valid' / content['images'][0]['file_name'])
    path.write_text(json.dumps(content))
    notes = find_data([str(root)], tmp_path / 'out').notes
    assert any('1 of 6 images to validate have the name of one in train before ".rf."' in line for line in notes)


# ---- what differs between splits, and missing images


def edit(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_val_takes_the_classes_of_train_in_their_order(shapes, tmp_path):
    root = Path(lay_out(layouts.roboflow, shapes, tmp_path / 'data')[0])

    def change(content: dict) -> None:  # other ids, another order, a class fewer, and one that has no objects
        content['categories'] = [dict(id=7, name='triangle'), dict(id=5, name='circle'), dict(id=9, name='hexagon')]
        objects = [one for one in content['annotations'] if one['category_id'] != 2]
        content['annotations'] = [one | dict(category_id={1: 5, 3: 7}[one['category_id']]) for one in objects]

    edit(root / 'valid/_annotations.coco.json', change)
    data = find_data([str(root)], tmp_path / 'out')
    expected = truth(shapes, 'coco')['val']
    assert data.classes == CLASSES
    assert read_coco(data)['val'] == {
        image: [one for one in objects if one[0] != 'square'] for image, objects in expected.items()
    }
    assert 'val has no objects of square: it is not evaluated' in data.notes


def test_a_class_that_train_lacks_is_an_error(shapes, tmp_path):
    root = Path(lay_out(layouts.roboflow, shapes, tmp_path / 'data')[0])
    edit(root / 'valid/_annotations.coco.json', lambda content: content['categories'][1].update(name='hexagon'))
    with pytest.raises(InputError, match=r'valid/_annotations.coco.json: .*hexagon.*circle, square, triangle'):
        find_data([str(root)], tmp_path / 'out')
    folders = Path(lay_out(layouts.roboflow_folders, shapes, tmp_path / 'folders')[0])
    (folders / 'valid/square').rename(folders / 'valid/hexagon')
    with pytest.raises(InputError, match='has images of hexagon in val, and none in train'):
        find_data([str(folders)], tmp_path / 'out')


def test_a_json_finds_its_images_in_the_folder_above(shapes, tmp_path):
    root = Path(lay_out(layouts.coco_in_images, shapes, tmp_path / 'data')[0])
    (root / 'images').rename(root / 'photographs')
    paths = [str(root / f'annotations/{split}.json') for split in ('train', 'valid')]
    assert read_coco(find_data(paths, tmp_path / 'out')) == truth(shapes, 'coco')
    (root / 'annotations').rename(root / 'plans')  # which says nothing: the folder above may be anyone's
    with pytest.raises(InputError, match=r'the images of .*plans/train.json were not found'):
        find_data([path.replace('annotations', 'plans') for path in paths], tmp_path / 'out')


@pytest.mark.parametrize('name', ['x' * 300 + '.jpg', 'a\0b.jpg', '', '/', '..', 'C:\\a.jpg'])
def test_a_name_that_no_file_can_have_is_missing(name, shapes, tmp_path):
    path = Path(lay_out(layouts.one_json, shapes, tmp_path / 'data')[0])
    edit(path, lambda content: content['images'][0].update(file_name=name))
    assert sum(find_data([str(path)], tmp_path / 'out').counts.values()) == 17


def test_a_few_missing_images_are_left_out_and_named(shapes, tmp_path):
    root = Path(lay_out(layouts.cvat_subsets, shapes, tmp_path / 'data')[0])
    (root / 'images/Train/000000000003.jpg').unlink()
    data = find_data([str(root)], tmp_path / 'out')
    assert data.counts == dict(train=11, val=6)
    assert any('1 of 12 images' in line and '000000000003.jpg' in line for line in data.notes)
    assert len(read_coco(data)['train']) == 11


@pytest.mark.parametrize(('left', 'message'), [(0, 'were not found, such as'), (8, '4 of its 12 images are not in')])
def test_many_missing_images_are_an_error_that_says_where_they_were_looked_for(left, message, shapes, tmp_path):
    root = Path(lay_out(layouts.cvat_subsets, shapes, tmp_path / 'data')[0])
    for path in sorted((root / 'images/Train').iterdir())[left:]:
        path.unlink()
    if not left:
        shutil.rmtree(root / 'images')
    with pytest.raises(InputError, match=f'instances_Train.json.*{message}.*{root}'):
        find_data([str(root)], tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_names_that_mean_the_same_file_are_an_error(shapes, tmp_path):
    path = Path(lay_out(layouts.one_json, shapes, tmp_path / 'data')[0])

    def change(content: dict) -> None:
        for image, camera in zip(content['images'], itertools.cycle(('left', 'right'))):
            image['file_name'] = f'{camera}/{content["images"][0]["file_name"].rsplit("/", 1)[-1]}'

    edit(path, change)
    with pytest.raises(InputError, match=r'18 of its 18 images are not in .*left/.*, right/'):
        find_data([str(path)], tmp_path / 'out')


def test_the_few_objects_without_a_mask_are_left_out_for_a_model_of_masks(shapes, tmp_path):
    path = Path(lay_out(layouts.one_json, shapes, tmp_path / 'data')[0])

    def change(content: dict) -> None:
        first = content['annotations'][0]
        content['annotations'] += [{**first, 'id': 1000 + i} for i in range(100)]
        first['segmentation'] = []

    edit(path, change)
    data = find_data([str(path)], tmp_path / 'out', masks=True)
    assert data.has_masks
    assert any('annotations have no valid mask' in note for note in data.notes)
    assert not find_data([str(path)], tmp_path / 'other').has_masks
    edit(path, lambda content: [one.update(segmentation=[]) for one in content['annotations'][::2]])
    with pytest.raises(InputError, match=r'labels.json: .* objects have no valid mask, such as annotation'):
        find_data([str(path)], tmp_path / 'none', masks=True)


@pytest.mark.parametrize('empty', ['train', 'valid'])
def test_a_split_without_objects_is_an_error(empty, shapes, tmp_path):
    root = Path(lay_out(layouts.roboflow, shapes, tmp_path / 'data')[0])
    edit(root / empty / '_annotations.coco.json', lambda content: content.update(annotations=[]))
    with pytest.raises(InputError, match=rf'{empty}/_annotations.coco.json: the json has no objects'):
        find_data([str(root)], tmp_path / 'out')


def test_a_test_split_without_annotations_is_left_out(shapes, tmp_path):
    root = Path(lay_out(layouts.roboflow, shapes, tmp_path / 'data')[0])
    edit(root / 'test/_annotations.coco.json', lambda content: content.pop('annotations'))
    data = find_data([str(root)], tmp_path / 'out')
    assert [*data.splits] == ['train', 'val']
    assert any('test/_annotations.coco.json has no annotations: it is left out' in line for line in data.notes)


def test_without_masks_in_some_objects_there_are_none(shapes, tmp_path):
    root = Path(lay_out(layouts.roboflow, shapes, tmp_path / 'data')[0])
    edit(root / 'train/_annotations.coco.json', lambda content: content['annotations'][0].update(segmentation=[]))
    data = find_data([str(root)], tmp_path / 'out')
    assert not data.has_masks
    assert any('objects have no mask' in line and line.startswith('1 of ') for line in data.notes)


# ---- files of the command line


def test_jsons_are_train_and_val_by_their_names_or_their_order(shapes, tmp_path):
    for at, names in enumerate((('b.json', 'a.json'), ('val.json', 'train.json'))):
        root = tmp_path / str(at)
        paths = []
        for name, split in zip(names, ('val', 'train') if at else ('train', 'val'), strict=True):
            copy(shapes / f'annotations/instances_{split}2017.json', root / split / name)
            paths.append(str(root / split / name))
            for image in (shapes / f'{split}2017').iterdir():
                copy(image, root / split / 'images' / image.name)
        assert read_coco(find_data(paths, tmp_path / 'out')) == truth(shapes, 'coco')


def test_each_json_may_be_followed_by_its_images(shapes, tmp_path):
    paths = []
    for split in ('train', 'val'):
        copy(shapes / f'annotations/instances_{split}2017.json', tmp_path / f'jsons/{split}.json')
        paths += [str(tmp_path / f'jsons/{split}.json'), str(shapes / f'{split}2017')]
    assert read_coco(find_data(paths, tmp_path / 'out')) == truth(shapes, 'coco')
    assert read_coco(find_data([paths[0], paths[2], str(shapes)], tmp_path / 'out')) == truth(shapes, 'coco')


@pytest.mark.parametrize(
    ('paths', 'kind', 'message'),
    [
        (['absent'], None, 'absent does not exist'),
        (['data.zip'], None, 'data.zip is neither a folder nor a json file'),
        (['images', 'a.json'], None, 'images is a folder that follows no json file'),
        (['images', 'images'], None, '2 folders are given'),
        (['a.json'] * 4, None, '4 json files are given'),
        (['a.json'], 'folders', 'a.json is a file, and the config needs a folder of images for each class'),
        (['a.json'], None, 'the images of .*a.json were not found, such as 1.jpg'),
    ],
)
def test_wrong_paths_are_one_line(paths, kind, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'images').mkdir()
    write_text(tmp_path / 'data.zip', 'zip')
    write_text(tmp_path / 'a.json', json.dumps(dict(images=[dict(id=1, file_name='1.jpg')])))
    with pytest.raises(InputError, match=message) as raised:
        find_data(paths, tmp_path / 'out', kind=kind)
    assert '\n' not in str(raised.value)
    assert not (tmp_path / 'out').exists()


# ---- folders of other formats


def _image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)


def _other(name: str, root: Path) -> str:
    """Writes a folder that cannot be used, and returns what the error must say."""
    images = name not in ('zip', 'empty', 'documents')
    for i in range(3 if images and name != 'brushes' else 0):
        _image(root / f'images/{i}.jpg')
    if name == 'yolo':
        write_text(root / 'data.yaml', 'names: [a]')
        write_text(root / 'labels/0.txt', '0 0.5 0.5 0.25 0.25\n')
        return r'3 images .* and YOLO annotations \(data.yaml\).*Roboflow \(COCO JSON\), CVAT \(COCO 1.0\)'
    if name == 'voc':
        write_text(root / 'Annotations/0.xml', '<annotation/>')
        return r'Pascal VOC annotations \(Annotations/0.xml\)'
    if name == 'cvat_xml':
        write_text(root / 'annotations.xml', '<annotations/>')
        return r'"CVAT for images" \(annotations.xml\): COCO json is needed.*CVAT \(COCO 1.0\)'
    if name == 'labelme':
        write_text(root / 'images/0.json', json.dumps(dict(version='5', shapes=[], imagePath='0.jpg')))
        return r'annotations that are not COCO json \(images/0.json\): COCO json is needed; Roboflow \(COCO JSON\)'
    if name == 'label_studio':
        write_text(root / 'project.json', json.dumps([dict(id=1, data={}, annotations=[])]))
        return r'annotations that are not COCO json \(project.json\): .* Label Studio \(COCO\) export it'
    if name == 'brushes':
        _image(root / 'task-1-annotation-2-by-1-tag-cat-0.png')
        return r'1 images \(task-1-.*-0.png\) and no annotations'
    if name == 'multi_label':
        write_text(root / 'train/_classes.csv', 'filename, cat, dog\n0.jpg, 1, 1\n')
        return r'several classes for each image, which no config trains, \(train/_classes.csv\)'
    if name == 'csv':
        write_text(root / 'train/_annotations.csv', 'filename,width,height,class,xmin,ymin,xmax,ymax\n')
        return r'a table \(train/_annotations.csv\)'
    if name == 'zip':
        write_text(root / 'export.zip', 'zip')
        return r'archives to unpack first \(export.zip\)'
    if name == 'images':
        return '3 images .* and no annotations'
    if name == 'documents':
        write_text(root / 'letters/a.doc', 'Dear')
        return 'contains no images; it contains letters/'
    if name == 'only_val':
        write_text(root / 'val.json', json.dumps(dict(images=[])))
        return 'contains val.json, and no COCO json to train on'
    if name == 'several':
        for file in ('a.json', 'b.json'):
            write_text(root / file, json.dumps(dict(images=[])))
        return 'contains 2 COCO json files for training'
    if name == 'truncated':
        write_text(root / 'labels.json', '{"images": [{"id": 1, ')
        return 'labels.json is not json.*export the annotations again'
    if name == 'unlike':
        _image(root / 'masks/x.png')
        return 'no label map in .* has the name of an image'
    if name == 'ambiguous':
        for i, suffix in itertools.product(range(3), ('mask', 'label')):
            _image(root / f'masks/{i}_{suffix}.png')
        return 'images/0.jpg has 2 label maps: masks/0_label.png, masks/0_mask.png'
    return f'{root} is empty'


@pytest.mark.parametrize(
    'name',
    [
        'yolo',
        'voc',
        'cvat_xml',
        'labelme',
        'label_studio',
        'brushes',
        'multi_label',
        'csv',
        'zip',
        'images',
        'documents',
        'only_val',
        'several',
        'truncated',
        'unlike',
        'ambiguous',
        'empty',
    ],
)
def test_a_folder_that_cannot_be_used_is_one_line(name, tmp_path):
    root = tmp_path / 'data'
    root.mkdir()
    message = _other(name, root)
    with pytest.raises(InputError, match=message) as raised:
        find_data([str(root)], tmp_path / 'out')
    assert str(root) in str(raised.value) or name == 'ambiguous'
    assert '\n' not in str(raised.value)
    assert not (tmp_path / 'out').exists()


def test_the_export_to_make_is_that_of_the_task(tmp_path):
    _other('yolo', tmp_path / 'data')
    for kind, message in (('label_maps', r'CVAT \(Segmentation mask 1.1\)'), ('folders', r'CVAT \(ImageNet 1.0\)')):
        with pytest.raises(InputError, match=message):
            find_data([str(tmp_path / 'data')], tmp_path / 'out', kind=kind)


def test_data_of_another_task_is_named(shapes, tmp_path):
    message = 'contains a folder of images for each class, .*: use configs/own_data/classification_pvt_v2.py for'
    with pytest.raises(InputError, match=message) as raised:
        find_data([str(shapes / 'classification')], tmp_path / 'out', kind='coco')
    assert all((ROOT / recipe).is_file() for recipe in RECIPES.values())
    assert str(raised.value).startswith(f'{shapes}/classification')


def test_without_a_validation_split_part_of_train_is_validated_and_test_is_kept(shapes, tmp_path):
    for layout in (layouts.roboflow, layouts.roboflow_folders):
        root = Path(lay_out(layout, shapes, tmp_path / layout.__name__)[0])
        shutil.rmtree(root / 'valid')
        data = find_data([str(root)], tmp_path / 'out')
        found, expected = READERS[data.kind](data), truth(shapes, data.kind)
        assert found['train'] | found['val'] == expected['train']
        assert len(found['val']) == (2 if data.kind == 'coco' else 3)  # one of each class
        assert found['test'].items() <= expected['val'].items()
        assert any('no validation split' in line and 'split by the seed 0' in line for line in data.notes)


def test_data_may_lie_below_other_folders(shapes, tmp_path):
    for layout in (layouts.roboflow, layouts.mmseg, layouts.roboflow_folders, layouts.one_folder):
        outer = tmp_path / layout.__name__ / 'unpacked'
        lay_out(layout, shapes, outer / 'My project.v1i')
        write_text(outer / 'README.txt', 'read me')
        whole = find_data([str(tmp_path / layout.__name__)], tmp_path / 'out')
        inner = find_data([str(outer / 'My project.v1i')], tmp_path / 'out')
        assert (whole.classes, whole.counts) == (inner.classes, inner.counts)


def test_a_run_in_the_folder_of_the_data_does_not_find_the_files_of_runs(shapes, tmp_path):
    root = Path(lay_out(layouts.label_studio, shapes, tmp_path / 'data')[0])
    for work_dir in ('runs/a', 'runs/a', 'runs/b', 'work_dirs/a', 'work_dirs/b'):
        out = root / work_dir / 'data'
        (out / 'own_data.json').unlink(missing_ok=True)
        data = find_data([str(root)], out)
        assert 'no validation split' in data.notes[1]
        if 'runs' in work_dir:
            write_text(out / 'own_data.json', '{}')


def test_the_folders_of_the_images_of_one_json_are_its_splits(shapes, tmp_path):
    root, every = tmp_path / 'data', read_shapes(shapes)
    for shape in every:
        copy(shape.image, root / f'{shape.split}2017/{shape.image.name}')
    names = [f'{shape.split}2017/{shape.image.name}' for shape in every]
    write_text(root / 'all.json', json.dumps(layouts.to_coco(every, names)))
    data = find_data([str(root)], tmp_path / 'out')
    assert read_coco(data) == truth(shapes, 'coco')
    assert 'was split by the folders of its images' in data.notes[1]


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16'])
def test_a_json_that_mmdetection_cannot_decode_is_written_anew(encoding, shapes, tmp_path):
    root = Path(lay_out(layouts.cvat_subsets, shapes, tmp_path / 'data')[0])
    path = root / 'annotations/instances_Train.json'
    path.write_text(path.read_text(), encoding=encoding)
    data = find_data([str(root)], tmp_path / 'out')
    assert read_coco(data) == truth(shapes, 'coco')
    assert any('UTF-16' in line and 'written in UTF-8' in line for line in data.notes)


def test_names_of_images_may_be_absolute(shapes, tmp_path):
    path = Path(lay_out(layouts.json_and_folder, shapes, tmp_path / 'data')[0])

    def change(content: dict) -> None:
        for image in content['images']:
            image['file_name'] = str(next((tmp_path / 'data/elsewhere').rglob(image['file_name'])))

    edit(path, change)
    found, expected = read_coco(find_data([str(path)], tmp_path / 'out')), truth(shapes, 'coco')
    assert found['train'] | found['val'] == expected['train'] | expected['val']


# ---- names of label maps, and lists of classes


@pytest.mark.parametrize(
    ('image', 'label_map'),
    [
        ('images/{}.jpg', 'masks/{}.png'),
        ('images/{}.png', 'labels/{}.png'),
        ('image/img_{}.jpg', 'mask/mask_{}.png'),
        ('JPEGImages/{}.jpg', 'SegmentationClassPNG/{}.png'),
        ('leftImg8bit/train/aachen/{}_leftImg8bit.png', 'gtFine/train/aachen/{}_gtFine_labelTrainIds.png'),
        ('train/{}.png', 'trainannot/{}.png'),
        ('data/train/images/{}.jpg', 'data/train/masks/{}.png'),
        ('train_images/{}.jpg', 'train_masks/{}_mask.png'),
        ('images/{}.jpg', 'masks/train/{}.png'),
        ('photos of 2024/{} (1).jpg', 'masks/{} (1)_mask.png'),
        ('{}.jpg', '{}_mask.png'),
        ('img-{}.jpg', 'mask-{}.png'),
        ('images/{}.jpg', 'masks/{}.jpg.png'),
    ],
)
def test_label_maps_are_found_by_name(image, label_map, shapes, tmp_path):
    expected = {}
    root = tmp_path / 'data'
    for at, shape in enumerate(read_shapes(shapes)[:12]):  # 1 and 10 begin alike
        copy(shape.image, root / image.format(at))
        copy(shape.label_map, root / label_map.format(at))
        for other in ('color', 'instanceIds', 'labelIds') if 'gtFine' in label_map else ():
            copy(shape.image, root / label_map.format(at).replace('labelTrainIds', other))
        expected[key(shape.image)] = cv2.imread(str(shape.label_map), 0).tolist()
    data = find_data([str(root)], tmp_path / 'out', kind='label_maps')
    found = read_label_maps(data)
    assert found['train'] | found['val'] == expected
    assert len(found['val']) == 2


def test_a_name_that_begins_like_an_image_is_another(shapes, tmp_path):
    root, every = tmp_path / 'data', read_shapes(shapes)
    for name, shape in zip(('a', 'a_1', 'a_2', 'b', 'b_1', 'c'), every[:6], strict=True):
        copy(shape.image, root / f'images/{name}.jpg')
    for name, at in dict(a_1=1, a_2=2, a_3=0, b=3, b_2=0, c=5).items():
        copy(every[at].label_map, root / f'masks/{name}.png')
    data = find_data([str(root)], tmp_path / 'out')
    found = read_label_maps(data)
    expected = {key(every[at].image): cv2.imread(str(every[at].label_map), 0).tolist() for at in (1, 2, 3, 5)}
    assert found['train'] | found['val'] == expected
    assert '2 images have no label map and are left out: images/a.jpg, images/b_1.jpg' in data.notes


def test_images_without_a_label_map_are_left_out_and_named(shapes, tmp_path):
    root = Path(lay_out(layouts.mmseg, shapes, tmp_path / 'data')[0])
    (root / 'annotations/training/000000000003.png').unlink()
    copy(root / 'annotations/training/000000000001.png', root / 'annotations/training/other.png')
    data = find_data([str(root)], tmp_path / 'out')
    assert data.counts == dict(train=11, val=6)
    assert '1 images have no label map and are left out: images/training/000000000003.jpg' in data.notes
    assert '1 label maps have no image and are left out: annotations/training/other.png' in data.notes


RGB = ', '.join('{}, {}, {}'.format(*color) for color in layouts.COLORS)


@pytest.mark.parametrize(
    ('file', 'text', 'has_colors'),
    [
        ('classes.txt', '\ufeffbackground\r\ncircle\r\nsquare\r\ntriangle\r\n', False),
        ('classes.txt', '0: background\n1: circle\n2: square\n3: triangle\n', False),
        ('classes.json', '["background", "circle", "square", "triangle"]', False),
        ('classes.json', '{"0": "background", "1": "circle", "2": "square", "3": "triangle"}', False),
        ('classes.json', '{"background": 0, "triangle": 3, "circle": 1, "square": 2}', False),
        (
            'classes.json',
            json.dumps([dict(name=n, color=c) for n, c in zip(layouts.MAP_CLASSES, layouts.COLORS, strict=True)]),
            True,
        ),
        ('labelmap.txt', 'background\ncircle\nsquare\ntriangle\n', False),
        ('labelmap.txt', 'background:::\ncircle:::\nsquare:::\ntriangle:::\n', False),
    ],
)
def test_classes_are_read_from_the_lists_of_tools(file, text, has_colors, shapes, tmp_path):
    layout = layouts.color_masks if has_colors else layouts.flat_masks
    root = Path(lay_out(layout, shapes, tmp_path / 'data')[0])
    (root / 'class_dict.csv').unlink(missing_ok=True)
    (root / file).write_bytes(text.encode())
    data = find_data([str(root)], tmp_path / 'out')
    assert data.classes == layouts.MAP_CLASSES
    assert data.palette == (list(layouts.COLORS) if has_colors else None)
    found, expected = read_label_maps(data), truth(shapes, 'label_maps')
    assert found['train'] | found['val'] == expected['train'] | expected['val']


@pytest.mark.parametrize(
    ('file', 'text', 'message'),
    [
        ('classes.txt', 'a\nb\na\nc\n', 'classes.txt lists a twice'),
        ('_classes.csv', 'Pixel Value, Class\nx, a\n', 'has labels that are not integers: x'),
        ('class_dict.csv', 'name,r,g,b\na,1,2\n', r'class_dict.csv gives a the colour'),
        ('classes.txt', b'\xff\xfe\x00', 'classes.txt cannot be read'),
    ],
)
def test_a_wrong_list_of_classes_is_one_line(file, text, message, shapes, tmp_path):
    root = Path(lay_out(layouts.flat_masks, shapes, tmp_path / 'data')[0])
    (root / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message):
        find_data([str(root)], tmp_path / 'out')


def test_ade20k_keeps_its_label_without_a_class(shapes, tmp_path):
    root = tmp_path / 'ADEChallengeData2016'
    lay_out(layouts.mmseg, shapes, root)
    write_text(root / 'classes.txt', '\n'.join(CLASSES))
    data = find_data([str(root)], tmp_path / 'out')
    assert data.classes == CLASSES
    assert data.splits['train']['reduce_zero_label'] is True
    (root / 'classes.txt').unlink()
    assert find_data([str(root)], tmp_path / 'out').classes[:3] == ('wall', 'building', 'sky')
    assert np.unique(next(iter(read_label_maps(data)['train'].values())))[-1] == 255


@pytest.mark.parametrize('file', ['splits/{}.txt', '{}.txt', 'ImageSets/Segmentation/{}.txt'])
def test_lists_choose_the_splits(file, shapes, tmp_path):
    root = tmp_path / 'data'
    for shape in read_shapes(shapes):
        copy(shape.image, root / f'images/{shape.name}.v1.jpg')
        copy(shape.label_map, root / f'masks/{shape.name}.v1.png')
    for split in ('train', 'val'):
        names = [f'{shape.name}.v1' for shape in read_shapes(shapes) if shape.split == split]
        names = [f'images/{name}.jpg masks/{name}.png' for name in names] if 'splits' in file else names
        write_text(root / file.format(split), '\n'.join(names))
    assert read_label_maps(find_data([str(root)], tmp_path / 'out')) == truth(shapes, 'label_maps')
    (root / file.format('train')).unlink()  # the others are trained on
    assert read_label_maps(find_data([str(root)], tmp_path / 'out')) == truth(shapes, 'label_maps')
    (root / file.format('val')).rename(root / file.format('train'))
    data = find_data([str(root)], tmp_path / 'out')
    assert data.counts == dict(train=5, val=1)
    assert any('12 images are in no split and are left out' in line for line in data.notes)


# ---- folders of classes


def test_images_to_validate_without_folders_of_classes_are_an_error(shapes, tmp_path):
    root = Path(lay_out(layouts.roboflow_folders, shapes, tmp_path / 'data')[0])
    for path in [*root.glob('valid/*/*.jpg'), *root.glob('test/*/*.jpg')]:
        path.rename(path.parents[1] / path.name)
    with pytest.raises(InputError, match='has classes in train, and valid to validate: put the images'):
        find_data([str(root)], tmp_path / 'out')
    shutil.rmtree(root / 'valid')  # images to predict may lie in test
    data = find_data([str(root)], tmp_path / 'out')
    assert data.counts == dict(train=9, val=3)


def test_a_class_in_another_case_is_named(shapes, tmp_path):
    root = Path(lay_out(layouts.roboflow_folders, shapes, tmp_path / 'data')[0])
    (root / 'valid/square').rename(root / 'valid/Square')
    with pytest.raises(InputError, match='has images of Square in val, and not in train, which has square: use one'):
        find_data([str(root)], tmp_path / 'out')


def test_a_split_may_have_images_of_one_class_only(shapes, tmp_path):
    root = Path(lay_out(layouts.roboflow_folders, shapes, tmp_path / 'data')[0])
    shutil.rmtree(root / 'valid/square')
    data = find_data([str(root)], tmp_path / 'out')
    assert data.counts == dict(train=12, val=2, test=4)
    assert 'val has no images of circle, square: it is not evaluated' in data.notes


def test_words_of_label_maps_may_be_classes(shapes, tmp_path):
    root = Path(lay_out(layouts.one_folder, shapes, tmp_path / 'data')[0])
    for old, new in zip(CLASSES, ('mask', 'with_mask', 'no_mask'), strict=True):
        (root / old).rename(root / new)
    (root / 'train').mkdir()  # a class too
    copy(next((root / 'mask').iterdir()), root / 'train/a.jpg')
    copy(next((root / 'no_mask').iterdir()), root / 'train/b.jpg')
    data = find_data([str(root)], tmp_path / 'out')
    assert (data.kind, data.classes) == ('folders', ('mask', 'no_mask', 'train', 'with_mask'))


def test_a_class_may_have_the_name_of_a_split(shapes, tmp_path):
    root = Path(lay_out(layouts.roboflow_folders, shapes, tmp_path / 'data')[0])
    for path in root.glob('*/square'):
        path.rename(path.with_name('train'))
    data = find_data([str(root)], tmp_path / 'out')
    assert data.classes == ('circle', 'train', 'triangle')
    assert {*read_folders(data)['val'].values()} == {'train', 'triangle'}


def test_hidden_files_and_empty_folders_are_no_data(shapes, tmp_path):
    root = Path(lay_out(layouts.roboflow_folders, shapes, tmp_path / 'data')[0])
    copy(next((root / 'train/circle').iterdir()), root / 'train/.ipynb_checkpoints/a-checkpoint.jpg')
    (root / 'train/hexagon').mkdir()
    data = find_data([str(root)], tmp_path / 'out')
    assert data.classes == CLASSES
    assert data.counts['train'] == 12
