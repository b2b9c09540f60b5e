"""Faults planted in a copy of the shapes, one at a time and all at once, are found and nothing else is."""

import functools
import json
import shutil
from pathlib import Path

import cv2
import pytest
from matplotlib.patches import Rectangle
from PIL import Image

from pvt_mm.analysis import dataset_check, samples
from pvt_mm.apis.config import load_config
from tests.conftest import ROOT
from tools import check_dataset

MAPS = """
_base_ = '{root}/configs/semantic_fpn/pvt_t_80k.py'
shapes = dict(type='BaseSegDataset', reduce_zero_label=True, metainfo=dict(classes=('circle', 'square', 'triangle'),
    palette=[[200, 0, 0], [0, 200, 0], [0, 0, 200]]))
train_dataloader = dict(dataset=shapes)
val_dataloader = dict(dataset=shapes)
test_dataloader = val_dataloader
"""
IMAGE = '{:012d}.jpg'
DETECTOR = str(ROOT / 'configs/demo/retinanet_shapes.py')


@pytest.fixture
def configs(tmp_path, monkeypatch) -> dict[str, tuple[str, str]]:
    """The config of each layout and its data root below the shapes; in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    Path('maps.py').write_text(MAPS.format(root=ROOT))
    classifier = str(ROOT / 'configs/classification/pvt_t_300e.py')
    return {'coco': (DETECTOR, ''), 'maps': ('maps.py', ''), 'folders': (classifier, 'classification')}


@pytest.fixture
def root(configs, shapes) -> Path:
    """A copy of the shapes that a test may damage."""
    return Path(shutil.copytree(shapes, 'shapes', symlinks=True))


def faults_in(config: tuple[str, str], root: Path) -> list[dataset_check.Fault]:
    path, folder = config
    splits = dataset_check.check_datasets(load_config(path, {'data_root': str(root / folder)}))
    return [fault for split in splits for fault in split.faults]


def truncate(path: Path) -> str:
    path.write_bytes(path.read_bytes()[:-200])
    return path.name


def in_json(change):
    """Turns a function that changes the training annotations, and returns where, into one of the data's root."""

    @functools.wraps(change)
    def plant(root: Path) -> str:
        path = root / 'annotations/instances_train2017.json'
        content = json.loads(path.read_text())
        where = change(content)
        path.write_text(json.dumps(content))
        return where

    return plant


def annotation(content: dict, image: int) -> dict:
    return next(one for one in content['annotations'] if one['image_id'] == image)


@in_json
def wrong_size(content):
    content['images'][2]['width'] += 8
    return IMAGE.format(3)


@in_json
def box_outside(content):
    one = annotation(content, 4)
    one['bbox'][0] = 70
    return f'{IMAGE.format(4)}, annotation {one["id"]}'


@in_json
def empty_box(content):
    one = annotation(content, 5)
    one['bbox'][2] = 0
    return f'{IMAGE.format(5)}, annotation {one["id"]}'


@in_json
def unknown_category(content):
    one = annotation(content, 6)
    one['category_id'] = '9'
    return f'{IMAGE.format(6)}, annotation {one["id"]}'


@in_json
def bad_mask(content):
    one = annotation(content, 7)
    one['segmentation'] = dict(size=[64, 64], counts='0')
    return f'{IMAGE.format(7)}, annotation {one["id"]}'


@in_json
def class_never_seen(content):
    for one in content['annotations']:
        one['category_id'] = 1 if one['category_id'] == 3 else one['category_id']
    return '1 of 3 classes have no example: triangle'


def missing_image(root: Path) -> str:
    (root / 'train2017' / IMAGE.format(1)).unlink()
    return IMAGE.format(1)


def unreadable_image(root: Path) -> str:
    return truncate(root / 'train2017' / IMAGE.format(2))


def duplicate(root: Path) -> str:
    folder = root / 'classification'
    shutil.copy(folder / 'train/square' / IMAGE.format(5), folder / 'val/square/copy.jpg')
    return 'copy.jpg'


def label_outside(root: Path) -> str:
    path = root / 'annotations/training' / IMAGE.format(8).replace('jpg', 'png')
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    labels[:2, :3] = 7
    cv2.imwrite(str(path), labels)
    return f'{path}: 6 pixels have the label 6'


def unreadable_label_map(root: Path) -> str:
    return truncate(root / 'annotations/training' / IMAGE.format(9).replace('jpg', 'png'))


def missing_label_map(root: Path) -> str:
    path = root / 'annotations/validation' / IMAGE.format(2).replace('jpg', 'png')
    path.unlink()
    return path.name


# The layouts that read what is damaged: the images of the label maps are links to the detector's.
PLANTS = {
    missing_image: ('coco', 'maps'),
    unreadable_image: ('coco', 'maps'),
    wrong_size: ('coco',),
    box_outside: ('coco',),
    empty_box: ('coco',),
    unknown_category: ('coco',),
    bad_mask: ('coco',),
    class_never_seen: ('coco',),
    duplicate: ('folders',),
    label_outside: ('maps',),
    unreadable_label_map: ('maps',),
    missing_label_map: ('maps',),
}


def is_found(plant, where: str, faults: list[dataset_check.Fault]) -> bool:
    return any(fault.kind == plant.__name__.replace('_', ' ') and where in fault.text for fault in faults)


def test_the_shapes_have_no_fault(configs, shapes, capsys):
    for path, folder in configs.values():
        arguments = [path, '--out', 'samples.png', '--cfg-options', f'data_root={shapes / folder}']
        assert check_dataset.main(arguments) == 0
        summary = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert summary == {'faults': 0, 'kinds': {}, 'images': {'train': 12, 'val, test': 6}, 'out': 'samples.png'}
        assert cv2.imread('samples.png').std() > 5


@pytest.mark.parametrize('plant', PLANTS, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_found_and_nothing_else(plant, configs, root):
    where = plant(root)
    for layout in PLANTS[plant]:
        faults = faults_in(configs[layout], root)
        assert is_found(plant, where, faults), faults
        assert len([fault for fault in faults if fault.kind != 'dropped objects']) == 1


def test_all_are_found_at_once(configs, root, capsys):
    planted = [(plant, plant(root)) for plant in PLANTS]
    faults = [fault for config in configs.values() for fault in faults_in(config, root)]
    assert len(faults) == 15
    assert [plant.__name__ for plant, where in planted if not is_found(plant, where, faults)] == []

    assert check_dataset.main([DETECTOR, '--cfg-options', f'data_root={root}']) == 1
    printed = capsys.readouterr().out
    assert json.loads(printed.splitlines()[-1])['faults'] == 9
    for plant, where in planted[:8]:
        assert plant.__name__.replace('_', ' ') in printed
        assert where in printed


def test_other_faults_of_files(configs, root):
    Image.new('L', (32, 64)).save(root / 'annotations/training' / IMAGE.format(1).replace('jpg', 'png'))
    (root / 'images/validation' / IMAGE.format(3)).unlink()
    (root / 'classification/train/circle' / IMAGE.format(1)).write_bytes(b'not an image')
    (root / 'classification/val/hexagon').mkdir()
    shutil.copy(root / 'val2017' / IMAGE.format(1), root / 'classification/val/hexagon')
    (root / 'annotations/instances_val2017.json').write_text('{"images": []')
    kinds = sorted(fault.kind for config in configs.values() for fault in faults_in(config, root))
    assert kinds == ['invalid annotations', 'missing image', 'other classes', 'unreadable image', 'wrong size']


def test_a_class_without_an_example_is_a_fault_in_training_alone(root, capsys):
    path = root / 'annotations/instances_val2017.json'
    content = json.loads(path.read_text())
    content['annotations'] = [one for one in content['annotations'] if one['category_id'] != 2]
    path.write_text(json.dumps(content))
    assert check_dataset.main([DETECTOR, '--cfg-options', f'data_root={root}']) == 0
    assert 'remark: val, test: 1 of 3 classes have no example: square' in capsys.readouterr().out


def test_concatenated_training_data_is_one(root):
    content = json.loads((root / 'annotations/instances_train2017.json').read_text())
    parts = []
    for name, labels in (('circles', [1]), ('others', [2, 3])):
        kept = [one for one in content['annotations'] if one['category_id'] in labels]
        (root / f'annotations/{name}.json').write_text(json.dumps({**content, 'annotations': kept}))
        parts.append(dict(ann_file=f'annotations/{name}.json'))
    config = load_config(DETECTOR, {'data_root': str(root)})
    dataset = config.train_dataloader.dataset
    config.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[{**dataset, **part} for part in parts])
    assert [fault for split in dataset_check.check_datasets(config) for fault in split.faults] == []


def test_what_indices_leave_out_is_not_checked(configs, root, capsys):
    truncate(root / 'train2017' / IMAGE.format(6))  # the label maps' is a link to it
    options = ['train_dataloader.dataset.indices=5', 'val_dataloader.dataset.indices=2']
    for layout in ('coco', 'maps'):  # the first images of a classifier are all of one class
        assert check_dataset.main([configs[layout][0], '--cfg-options', f'data_root={root}', *options]) == 0
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert found['images'] == {'train': 5, 'val': 2, 'test': 6}
    config = load_config(DETECTOR, {'data_root': str(root), 'train_dataloader.dataset.indices': [1, 5]})
    (fault,) = dataset_check.check_datasets(config)[0].faults
    assert (fault.kind, IMAGE.format(6) in fault.text) == ('unreadable image', True)


@pytest.mark.parametrize(
    ('key', 'value', 'kind'),
    [
        ('category_id', [1], 'unknown category'),
        ('category_id', None, 'unknown category'),
        ('bbox', None, 'invalid box'),
        ('bbox', [1, 2, float('nan'), 4], 'invalid box'),
        ('bbox', [1, 2, 3, -4], 'empty box'),
        ('bbox', [-25, 0, 20, 20], 'box outside'),
        ('segmentation', {}, None),  # a detector's pipeline loads none
        ('segmentation', [['a']], 'empty mask'),
        ('image_id', 99, 'unlisted image'),
        ('id', 2, 'invalid id'),
        ('bbox', [1, 2, 10**400, 4], 'invalid box'),
        ('area', None, 'invalid area'),
    ],
)
def test_malformed_annotations(key, value, kind, root):
    path = root / 'annotations/instances_train2017.json'
    content = json.loads(path.read_text())
    content['annotations'][0][key] = value
    path.write_text(json.dumps(content))
    splits = dataset_check.check_datasets(load_config(DETECTOR, {'data_root': str(root)}))
    found = {fault.kind for split in splits for fault in split.faults} - {'dropped objects'}
    assert found == ({kind} if kind else set())
    assert samples.plot_samples(splits, 'title').axes


def change_annotations(root: Path, change) -> list[dataset_check.Split]:
    path = root / 'annotations/instances_train2017.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return dataset_check.check_datasets(load_config(DETECTOR, {'data_root': str(root)}))


def test_two_images_of_one_id(root):
    splits = change_annotations(root, lambda content: content['images'][1].update(id=content['images'][0]['id']))
    assert {fault.kind for fault in splits[0].faults} == {'repeated image', 'unlisted image'}


def test_categories_that_are_not_trained_on_are_counted_apart(root, capsys):
    def add_category(content):
        content['categories'].append(dict(id=9, name='hexagon'))
        content['annotations'][0]['category_id'] = 9

    train = change_annotations(root, add_category)[0]
    assert (train.faults, train.seen[None], sorted(filter(None, train.seen))) == ([], 1, [1, 2])
    assert check_dataset.main([DETECTOR, '--cfg-options', f'data_root={root}']) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith('train'))
    assert line.split()[:7] == ['train', '12', str(train.seen.total() - 1), '1', '3', 'of', '3']


def test_missing_masks_are_faults_if_the_pipeline_loads_masks(root):
    splits = change_annotations(root, lambda content: content['annotations'][0].pop('segmentation'))
    assert splits[0].faults == []
    options = {'data_root': str(root), 'train_dataloader.dataset.pipeline.1.with_mask': True}
    (fault, *_) = dataset_check.check_datasets(load_config(DETECTOR, options))[0].faults
    assert (fault.kind, 'there is no mask' in fault.text) == ('bad mask', True)


def test_the_figure_shows_the_images_with_their_boxes(shapes):
    splits = dataset_check.check_datasets(load_config(DETECTOR, {'data_root': str(shapes)}))
    axes = samples.plot_samples(splits, 'title').axes[0]
    item = splits[0].items[0]
    assert (axes.images[0].get_array() == cv2.imread(item.path)[..., ::-1]).all()
    drawn = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    boxes = {(*patch.get_xy(), patch.get_width(), patch.get_height()) for patch in drawn}
    assert sorted(boxes) == [pytest.approx(box) for box in sorted(tuple(one['bbox']) for _, one, _ in item.drawn)]


@pytest.mark.parametrize(
    'damage',
    [
        lambda content: b'\xef\xbb\xbf' + content,
        lambda content: content.decode().encode('utf-16'),
        lambda content: b'[' * 100_000,
        lambda content: content.replace(b'"circle"', b'{}'),
    ],
    ids=['byte order mark', 'utf-16', 'nested', 'name'],
)
def test_annotations_that_training_cannot_read_are_invalid(damage, configs, root):
    path = root / 'annotations/instances_train2017.json'
    path.write_bytes(damage(path.read_bytes()))
    (fault, *others) = faults_in(configs['coco'], root)
    assert fault.kind in ('invalid annotations', 'invalid category')
    assert {other.kind for other in others} <= {'class never seen', 'unlisted category'}


def test_an_image_that_exif_rotates_has_the_size_after_rotation(configs, root):
    exif = Image.Exif()
    exif[274] = 6
    Image.new('RGB', (48, 64)).save(root / 'train2017' / IMAGE.format(1), exif=exif)
    (wrong,) = faults_in(configs['coco'], root)
    assert '64 x 48 pixels, the json says 64 x 64' in wrong.text


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['gone.py'], 'the config gone.py does not exist'),
        (['DEMO', '--cfg-options', 'data_root=gone'], 'the data is missing: gone/annotations/instances_train2017'),
        (['DEMO', '--out', 'samples.txt'], '--out samples.txt: name a file that ends in'),
        (
            ['DEMO', '--cfg-options', 'train_dataloader.dataset.type=BaseDetDataset', 'DATA'],
            'the train data is a BaseDetDataset',
        ),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(arguments, message, configs, shapes, capsys):
    replaced = {'DEMO': DETECTOR, 'DATA': f'data_root={shapes}'}
    assert check_dataset.main([replaced.get(argument, argument) for argument in arguments]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error:')]
    assert len(error) == 1
    assert message in error[0]
    assert not list(Path().glob('*.png'))


def test_crowds_and_dropped_objects_are_dashed_and_named(root):
    def change(content):
        first, second, *_ = [one for one in content['annotations'] if one['image_id'] == 1]
        first['iscrowd'], second['area'] = 1, 0
        content['images'] = content['images'][:1]

    splits = change_annotations(root, change)
    figure = samples.plot_samples(splits, 'title')
    dashed = [
        patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle) and patch.get_linestyle() == '--'
    ]
    assert len(dashed) == 2
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {'dropped by training: area 0', 'ignored in training: a crowd'} <= set(labels)


@pytest.mark.parametrize('name', ['short.jpg', 'frame_000123_jpg.rf.0a1b2c3d4e5f60718293a4b5c6d7e8f9.jpg', 'x' * 300])
def test_long_names_are_shortened(name):
    short = samples.shorten_middle(name, 44)
    assert len(short) <= 44
    assert short == name or ('…' in short and name.startswith(short.split('…')[0]) and name.endswith(short[-8:]))
