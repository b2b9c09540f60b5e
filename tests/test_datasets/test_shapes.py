"""The shapes dataset: reproducible images whose boxes, polygons and maps agree, and folders that are complete."""

import functools
import hashlib
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from pvt_mm.datasets.shapes import CLASSES, MARKER, VERSION, Scene, draw_scene, make_shapes
from pvt_mm.utils.errors import InputError
from tools.make_shapes import main

pycocotools_mask = pytest.importorskip('pycocotools.mask')
SIZES = (160, (96, 208), 32)

GOLDEN_INSTANCES = [
    ('circle', (30, 60, 39, 39), 1040),
    ('square', (109, 91, 40, 40), 1440),
    ('circle', (43, 86, 45, 45), 1608),
]
GOLDEN_MAP = '6b92dfb14a2ea053c1083e0bd82e04b3e78dd93f7f62f1b6eeb19e188a6503f9'
GOLDEN_COLOR = (203.57, 161.66, 137.97)


def rng(index=0):
    return np.random.default_rng([VERSION, 0, 0, index])


@functools.cache
def drawn(index: int, size: int | tuple[int, int] = 160) -> Scene:
    return draw_scene(rng(index), size)


def contents(root):
    """Returns the hash of every file in a folder, by path; links are followed."""
    return {
        str(Path(folder, name).relative_to(root)): hashlib.sha256(Path(folder, name).read_bytes()).hexdigest()
        for folder, _, names in os.walk(root, followlinks=True)
        for name in names
    }


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp('shapes') / 'out'
    return out, make_shapes(out, image_size=(96, 128), train=12, val=5)


# ---- images


def test_golden_scene():
    scene = draw_scene(rng(), 160, first_label=0)
    assert [(CLASSES[i.label], i.bbox, int(i.mask.sum())) for i in scene.instances] == GOLDEN_INSTANCES
    assert hashlib.sha256(scene.semantic_map.tobytes()).hexdigest() == GOLDEN_MAP
    # Blurs and resizes differ in their last bits between builds of OpenCV.
    assert scene.image.reshape(-1, 3).mean(axis=0) == pytest.approx(GOLDEN_COLOR, abs=0.5)


def test_same_rng_same_scene():
    first, second, other = draw_scene(rng(3)), drawn(3), drawn(4)
    assert np.array_equal(first.image, second.image)
    assert [i.polygons for i in first.instances] == [i.polygons for i in second.instances]
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize('size', SIZES)
def test_annotations_agree(size):
    h, w = (size, size) if isinstance(size, int) else size
    for index in range(30):
        scene = drawn(index, size)
        assert scene.image.shape == (h, w, 3)
        assert scene.image.dtype == scene.semantic_map.dtype == np.uint8
        assert 1 <= len(scene.instances) <= 7
        assert sum(i.mask.astype(int) for i in scene.instances).max() == 1, 'visible parts overlap'
        assert np.array_equal(scene.semantic_map, sum(i.mask * (1 + i.label) for i in scene.instances))
        for instance in scene.instances:
            x, y, bw, bh = instance.bbox
            rows, cols = np.nonzero(instance.mask)
            assert (x, y, x + bw - 1, y + bh - 1) == (cols.min(), rows.min(), cols.max(), rows.max())
            filled = pycocotools_mask.decode(
                pycocotools_mask.merge(pycocotools_mask.frPyObjects(instance.polygons, h, w))
            ).astype(bool)
            iou = (filled & instance.mask).sum() / (filled | instance.mask).sum()
            assert iou > (0.9 if min(h, w) > 64 else 0.75), (index, instance.bbox)


def test_sizes_and_contrast():
    """A shape spans 12 px to 3/4 of the image, and its border is an edge in the image."""
    for index in range(30):
        scene = drawn(index)
        smooth = cv2.GaussianBlur(scene.image, (0, 0), 1).astype(float)
        for instance in scene.instances:
            assert min(instance.bbox[2:]) >= 12
            assert max(instance.bbox[2:]) <= 120
            mask = instance.mask.astype(np.uint8)
            inner = mask.astype(bool) & ~cv2.erode(mask, np.ones((5, 5))).astype(bool)
            outer = cv2.dilate(mask, np.ones((7, 7))).astype(bool) & ~instance.mask
            step = np.linalg.norm(smooth[inner].mean(axis=0) - smooth[outer].mean(axis=0))
            assert step > 25, (index, instance.bbox)


def test_colour_does_not_depend_on_the_class():
    colors = {label: [] for label in range(len(CLASSES))}
    for index in range(150):
        scene = drawn(index, 64)
        for instance in scene.instances:
            colors[instance.label].append(scene.image[instance.mask].mean(axis=0))
    means = np.array([np.mean(values, axis=0) for values in colors.values()])
    spread = np.std(np.concatenate(list(colors.values())), axis=0)
    assert (np.abs(means - means.mean(axis=0)) < 0.25 * spread).all()


# ---- folders


def test_coco_json(made):
    from pycocotools.coco import COCO

    out, summary = made
    for split, count in (('train', 12), ('val', 5)):
        coco = COCO(out / 'annotations' / f'instances_{split}2017.json')
        assert [c['name'] for c in coco.loadCats([1, 2, 3])] == list(CLASSES)
        assert len(coco.dataset['images']) == len(coco.imgs) == count
        assert len(coco.dataset['annotations']) == len(coco.anns), 'an id is used twice'
        assert {a['category_id'] for a in coco.anns.values()} == {1, 2, 3}
        assert sum(summary['instances'][split].values()) == len(coco.anns)
        for annotation in coco.anns.values():
            image = coco.imgs[annotation['image_id']]
            semantic_map = cv2.imread(
                str(
                    out
                    / 'annotations'
                    / {'train': 'training', 'val': 'validation'}[split]
                    / image['file_name'].replace('.jpg', '.png')
                ),
                cv2.IMREAD_UNCHANGED,
            )
            mask = coco.annToMask(annotation).astype(bool)
            assert (semantic_map[mask] == annotation['category_id']).mean() > 0.85
            assert annotation['area'] == pytest.approx(mask.sum(), rel=0.2)
            assert annotation['iscrowd'] == 0


def test_layout(made):
    out, _ = made
    assert cv2.imread(str(out / 'train2017' / '000000000012.jpg')).shape == (96, 128, 3)
    for images, maps in (('train2017', 'training'), ('val2017', 'validation')):
        stems = sorted(p.stem for p in (out / images).glob('*.jpg'))
        assert stems == sorted(p.stem for p in (out / 'images' / maps).glob('*.jpg'))
        assert stems == sorted(p.stem for p in (out / 'annotations' / maps).glob('*.png'))
    assert {name: len(list((out / 'classification' / 'train' / name).glob('*.jpg'))) for name in CLASSES} == {
        'circle': 4,
        'square': 4,
        'triangle': 4,
    }
    for path in out.glob('classification/*/*/*.jpg'):
        h, w = cv2.imread(str(path)).shape[:2]
        assert h == w
        assert 32 <= h <= 96


def test_image_depends_on_its_index_not_on_counts(made, tmp_path):
    out, _ = made
    make_shapes(tmp_path / 'few', image_size=(96, 128), train=4, val=2)
    many, few = contents(out), contents(tmp_path / 'few')
    images = [name for name in few if name.endswith(('.jpg', '.png'))]
    assert len(images) == 4 * (4 + 2)
    assert all(few[name] == many[name] for name in images)
    assert few['train2017/000000000001.jpg'] != few['val2017/000000000001.jpg']
    make_shapes(tmp_path / 'seed', image_size=(96, 128), train=4, val=2, seed=1)
    other = contents(tmp_path / 'seed')
    assert all(few[name] != other[name] for name in images)


def test_complete_folder_is_kept(made):
    out, summary = made
    before = {path: path.stat().st_mtime_ns for path in out.rglob('*')}
    again = make_shapes(out, image_size=[96, 128], train=12, val=5)
    assert again == {**summary, 'written': False}
    assert {path: path.stat().st_mtime_ns for path in out.rglob('*')} == before


def test_interrupted_run_leaves_nothing(made, tmp_path):
    out = tmp_path / 'data/out'

    def interrupt(places):
        assert len(places) == 25
        yield from places[:3]
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            make_shapes(out, image_size=(96, 128), train=20, val=5, progress=interrupt)
        assert list((tmp_path / 'data').iterdir()) == []
    out.mkdir()  # an empty folder is used, also through a link
    (tmp_path / 'link').symlink_to(out)
    assert make_shapes(tmp_path / 'link', image_size=(96, 128), train=12, val=5)['written']
    assert (tmp_path / 'link').is_symlink()
    assert contents(out) == contents(made[0])
    assert os.listdir(tmp_path / 'data') == ['out']


def test_lost_file_is_restored(made, tmp_path):
    out = tmp_path / 'out'
    shutil.copytree(made[0], out, symlinks=True)
    (out / 'annotations' / 'training' / '000000000003.png').unlink()
    assert make_shapes(out, image_size=(96, 128), train=12, val=5)['written']
    assert contents(out) == contents(made[0])


def test_other_options_are_refused_unless_overwrite(tmp_path):
    make_shapes(tmp_path, image_size=48, train=6, val=2)
    before = contents(tmp_path)
    for options in (dict(train=5), dict(val=1), dict(image_size=64), dict(seed=1)):
        with pytest.raises(InputError, match=r'other options.*train=6.*--overwrite'):
            make_shapes(tmp_path, **{**dict(image_size=48, train=6, val=2), **options})
    assert contents(tmp_path) == before
    make_shapes(tmp_path, image_size=48, train=3, val=2, overwrite=True)
    assert sorted(path.name for path in (tmp_path / 'train2017').iterdir()) == [f'{i:012d}.jpg' for i in (1, 2, 3)]


@pytest.mark.parametrize(
    'name', ['train2017/notes.txt', 'train2017/000000000099.jpg', 'classification/train/mine', 'link', 'mine']
)
def test_folder_with_other_files_is_never_replaced(made, name, tmp_path):
    out = tmp_path / 'out'
    shutil.copytree(made[0], out, symlinks=True)
    if name == 'link':
        (out / name).symlink_to(tmp_path, target_is_directory=True)
    elif name.endswith('mine'):
        (out / name).mkdir()
    else:
        (out / name).write_text('mine')
    before = {path: path.stat().st_mtime_ns for path in out.rglob('*')}
    assert not make_shapes(out, image_size=(96, 128), train=12, val=5)['written']  # it is complete
    with pytest.raises(InputError, match=f'not of a finished dataset of shapes .{name}.: choose another'):
        make_shapes(out, image_size=48, train=2, val=1, overwrite=True)
    assert {path: path.stat().st_mtime_ns for path in out.rglob('*')} == before


@pytest.mark.parametrize('overwrite', [False, True])
def test_folder_of_others_is_never_replaced(tmp_path, overwrite):
    (tmp_path / 'train2017').mkdir()
    (tmp_path / 'train2017' / '000000000001.jpg').write_text('mine')
    with pytest.raises(InputError, match='train2017'):
        make_shapes(tmp_path, image_size=48, train=2, val=1, overwrite=overwrite)
    assert contents(tmp_path) == {'train2017/000000000001.jpg': hashlib.sha256(b'mine').hexdigest()}


def test_copies_where_links_are_not_supported(made, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError('no links here')

    monkeypatch.setattr(Path, 'symlink_to', refuse)
    make_shapes(tmp_path, image_size=(96, 128), train=12, val=5)
    assert not any(path.is_symlink() for path in tmp_path.rglob('*'))
    assert contents(tmp_path) == contents(made[0])
    assert make_shapes(tmp_path, image_size=48, train=1, val=0, overwrite=True)['written']


def test_folder_can_be_moved(made, tmp_path):
    shutil.copytree(made[0], tmp_path / 'copy', symlinks=True)
    moved = (tmp_path / 'copy').rename(tmp_path / 'moved')
    assert contents(moved) == contents(made[0])


def test_no_images(tmp_path):
    summary = make_shapes(tmp_path, train=0, val=0)
    assert summary['instances'] == {split: dict.fromkeys(CLASSES, 0) for split in ('train', 'val')}
    assert not make_shapes(tmp_path, train=0, val=0)['written']


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(image_size=31), 'image size 31x31: each side must be within 32 to 4096 pixels'),
        (dict(image_size=(160, 5000)), 'image size 160x5000'),
        (dict(train=-1), 'train is -1'),
        (dict(val=-2), 'val is -2'),
        (dict(seed=-3), 'seed is -3'),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        make_shapes(tmp_path / 'out', **options)
    assert not (tmp_path / 'out').exists()


# ---- the command


def test_command(made, tmp_path, capsys):
    args = [str(tmp_path / 'out'), '--image-size', '96', '128', '--train', '12', '--val', '5']
    assert main(args) == 0
    streams = capsys.readouterr()
    assert json.loads(streams.out.splitlines()[-1]) == {'out': args[0], **made[1]}
    assert 'images' in streams.err
    assert contents(tmp_path / 'out') == contents(made[0])

    assert main(args) == 0
    streams = capsys.readouterr()
    assert json.loads(streams.out)['written'] is False
    assert streams.err == f'{args[0]} is complete; nothing written\n'


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['{}/file'], 'file is not a folder'),
        (['{}/file/below'], 'file: '),
        (['{}/broken'], 'shapes.json was not written by the generator'),
        (['{}/out', '--image-size', '31'], 'within 32 to 4096'),
        (['{}/out', '--train', '-1'], 'must not be negative'),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, args, message):
    (tmp_path / 'file').write_text('mine')
    (tmp_path / 'broken').mkdir()
    (tmp_path / 'broken' / MARKER).write_text('[1]')
    assert main([arg.format(tmp_path) for arg in args]) == 2
    streams = capsys.readouterr()
    assert streams.out == ''
    assert streams.err.startswith('error: ')
    assert message in streams.err
    assert streams.err.count('\n') == 1
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ([], 'required: OUT'),
        (['out', '--image-size', '64', '64', '64'], 'one or two numbers'),
        (['out', '--image-size', 'large'], "invalid int value: 'large'"),
        (['out', '--trains'], 'unrecognized'),
    ],
)
def test_bad_usage(args, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_interrupted_command(tmp_path, capsys, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr('pvt_mm.datasets.shapes.draw_scene', interrupt)
    assert main([str(tmp_path / 'out'), '--train', '2', '--val', '1']) == 130
    streams = capsys.readouterr()
    assert streams.out == ''
    assert streams.err.endswith('interrupted\n')
    assert list(tmp_path.iterdir()) == []
