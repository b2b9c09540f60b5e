"""The data checks report every fault of damaged annotations and label maps, and nothing else."""

import copy
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

from pvt_mm.analysis import dataset_check
from pvt_mm.apis import data_checks
from pvt_mm.datasets.coco import KINDS as COCO_KINDS
from pvt_mm.datasets.coco import find_faults, repair
from pvt_mm.datasets.coco.masks import decode_run_lengths, mask_fault
from pvt_mm.datasets.shapes import CLASSES
from pvt_mm.utils.errors import InputError
from tests.conftest import ROOT
from tests.fuzz import assert_clear, cases
from tools import check_dataset

SIDE = 64
KINDS = {
    *COCO_KINDS, 'class never seen', 'duplicate', 'label outside', 'missing', 'missing label map', 'unreadable image',
    'unreadable label map', 'wrong size',
}  # fmt: skip
WHOLE_FILE = {
    'invalid annotations', 'class never seen', 'dropped objects', 'invalid category', 'no images', 'no objects',
    'only crowds', 'project as category', 'repeated category', 'wrong classes',
}  # fmt: skip


@pytest.fixture(scope='module')
def annotations(shapes) -> str:
    return (shapes / 'annotations/instances_train2017.json').read_text()


def coco(shapes: Path, ann_file: Path, with_mask: bool) -> Config:
    """A minimal config of a detector of the shapes."""
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=with_mask),
        dict(type='Resize', scale=(48, 48), keep_ratio=True),
        dict(type='PackDetInputs'),
    ]
    dataset = dict(
        type='CocoDataset', data_root=f'{shapes}/', ann_file=str(ann_file), data_prefix=dict(img='train2017/'),
        metainfo=dict(classes=CLASSES), pipeline=pipeline,
    )  # fmt: skip
    return Config(
        dict(
            default_scope='mmdet',
            model=dict(type='RetinaNet', bbox_head=dict(num_classes=3)),
            train_dataloader=dict(batch_size=2, dataset=dataset),
        )
    )


def faults_of(config: Config) -> list[dataset_check.Fault] | None:
    """Returns the faults, or None if the data is refused with an error of one line."""
    try:
        splits = dataset_check.check_datasets(config)
    except InputError as refused:
        assert_clear(str(refused))
        return None
    faults = [fault for split in splits for fault in split.faults]
    for fault in faults:
        assert fault.kind in KINDS
        assert_clear(fault.text, limit=900)
    return faults


def assert_trains(config: Config) -> list[dict]:
    """Loads all that training would, as training does."""
    init_default_scope('mmdet')
    dataset = DATASETS.build(dict(config.train_dataloader.dataset, serialize_data=False))
    samples = [dataset[i] for i in range(len(dataset))]
    for sample in samples:
        boxes = sample['data_samples'].gt_instances.bboxes.tensor
        assert boxes.isfinite().all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
    return samples


def assert_repaired(shapes: Path, content: dict) -> None:
    """Asserts that a corrected copy has no faults, is as it was if it had none, or cannot be made."""
    folder, before = shapes / 'train2017', repr(content)
    faulty = any(find_faults(content, folder))
    try:
        repaired, lines = repair(content, folder)
    except InputError as refused:
        assert_clear(str(refused))
        assert faulty
        return
    assert {fault.kind for fault in find_faults(repaired, folder)} <= {'box beyond the border'}
    assert bool(lines) == (repr(repaired) != before)
    assert faulty or not lines or any('had ignore' in line for line in lines)
    for line in lines:
        assert_clear(line)
    assert repr(content) == before


def assert_refused_or_passed(config: Config) -> bool:
    """Returns whether the checks of tools/train.py before a training pass."""
    init_default_scope(config.default_scope)
    try:
        data_checks.check_data(copy.deepcopy(config), 'train')
    except InputError as refused:
        assert_clear(' '.join(str(refused).split()), limit=900)
        return False
    return True


# -------------------------------------------------------------------------------------------------------- mutations


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 70), st.integers(), st.sampled_from([10**30, -(10**400), 2**63, 2**31]),
    st.floats(), st.floats(-5, 70), st.text(max_size=5), st.just('\udcff'), st.just('../x\n.jpg'),
    st.lists(st.integers(-1, 70), max_size=8), st.lists(st.floats(), max_size=8), st.just({}), st.just([[]]),
    st.lists(st.lists(st.floats(-5, 70), min_size=6, max_size=8), max_size=2),
    st.fixed_dictionaries({'size': st.just([SIDE, SIDE]), 'counts': st.one_of(
        st.text(max_size=6), st.lists(st.integers(-5, SIDE**2)), st.none(), st.just([0, SIDE**2]))}),
)  # fmt: skip


class Missing:
    def __repr__(self) -> str:
        return 'MISSING'


MISSING = Missing()


@st.composite
def places(draw, sections: tuple[str, ...] = ('annotations', 'images', 'categories')) -> tuple:
    """Draws what to change in the file: a section, the number of an entry, a key, and an index if that is a list."""
    section = draw(st.sampled_from(sections))
    keys = {
        'annotations': ('id', 'image_id', 'category_id', 'bbox', 'area', 'segmentation', 'iscrowd', 'ignore'),
        'images': ('id', 'file_name', 'height', 'width'),
        'categories': ('id', 'name'),
    }[section]
    return section, draw(st.integers(0, 60)), draw(st.sampled_from(keys)), draw(st.one_of(st.none(), st.integers(0, 7)))


def change(content: dict, place: tuple, value: Any) -> dict:
    """Sets a value at a place, and returns its entry as it was before."""
    section, number, key, index = place
    value = value if value is MISSING else copy.deepcopy(value)
    entry = content[section][number % len(content[section])]
    was = copy.deepcopy(entry)
    inner = entry.get(key)
    if index is not None and isinstance(inner, list) and inner and value is not MISSING:
        inner[index % len(inner)] = value
    elif value is MISSING:
        entry.pop(key, None)
    else:
        entry[key] = value
    return was


def names_of(content: dict, section: str, was: dict) -> set[str]:
    """Returns the names by which faults of an entry and its dependents are reported: image files, annotation ids."""
    if section == 'images':
        return {was['file_name']}
    images = {image['id']: image['file_name'] for image in content['images']}
    if section == 'annotations':
        return {images[was['image_id']], f'annotation {was["id"]}'}
    return {images[one['image_id']] for one in content['annotations'] if one['category_id'] == was['id']}


@cases('annotations', 450, quick=25)(
    st.lists(st.tuples(places(), st.one_of(ODD, st.just(MISSING))), min_size=1, max_size=3), st.booleans()
)
def test_changed_entries_are_named_or_train(shapes, annotations, mutations, with_mask):
    before, content = json.loads(annotations), json.loads(annotations)
    touched = set()
    for place, value in mutations:
        fresh = json.loads(annotations)
        touched |= names_of(before, place[0], change(fresh, place, value))
        change(content, place, value)
        # the entry by its new name
        entry = content[place[0]][place[1] % len(content[place[0]])]
        touched |= {str(entry.get('file_name')), f'annotation {entry.get("id")}'}
        touched |= {f'image {entry.get("image_id")}', f'annotation {entry.get("id")} '}
        if place[0] == 'images' and place[2] == 'id':  # then its annotations have no image
            touched |= {f'annotation {one["id"]}' for one in before['annotations']}
            touched |= {image['file_name'] for image in before['images'] if image['id'] == value}
        if place[0] == 'categories':  # then its annotations have none
            touched.add('the json has no category')
        if place[2] == 'image_id':
            touched |= {image['file_name'] for image in before['images'] if image['id'] == value}
    path = shapes.parent / f'changed{os.getpid()}.json'
    path.write_text(json.dumps(content))
    config = coco(shapes, path, with_mask)
    faults = faults_of(config)
    passed = assert_refused_or_passed(config)
    assert faults is not None
    for fault in faults:
        assert fault.kind in WHOLE_FILE or any(' '.join(name.split()) in fault.text for name in touched), fault
    if not faults:
        assert passed
        assert_trains(config)
    assert_repaired(shapes, content)


@st.composite
def valid_boxes(draw) -> list[float]:
    x, y = draw(st.floats(0, SIDE - 2)), draw(st.floats(0, SIDE - 2))
    return [x, y, draw(st.floats(1, SIDE - x)), draw(st.floats(1, SIDE - y))]


@st.composite
def valid_masks(draw) -> Any:
    if draw(st.booleans()):
        cuts = sorted(draw(st.lists(st.integers(1, SIDE**2 - 1), min_size=1, max_size=5)))
        return dict(size=[SIDE, SIDE], counts=np.diff([0, *cuts, SIDE**2]).tolist())
    point = st.floats(1, SIDE - 1)
    polygon = st.lists(st.tuples(point, point), min_size=3, max_size=6).map(lambda points: [*sum(points, ())])
    return draw(st.lists(polygon, min_size=1, max_size=2))


@cases('annotations', 200, quick=10)(
    st.lists(
        st.one_of(
            st.tuples(st.just('bbox'), valid_boxes()),
            st.tuples(st.just('segmentation'), valid_masks()),
            st.tuples(st.just('category_id'), st.integers(1, 3)),
            st.tuples(st.just('area'), st.floats(1, SIDE**2)),
            st.tuples(st.just('iscrowd'), st.integers(0, 1)),
            st.tuples(st.just('attributes'), ODD),
        ),
        min_size=1,
        max_size=12,
    ),
    st.integers(0, 60),
    st.booleans(),
)
def test_other_valid_annotations_are_not_reported(shapes, annotations, mutations, first, with_mask):
    content = json.loads(annotations)
    for number, (key, value) in enumerate(mutations):
        change(content, ('annotations', first + number, key, None), value)
    path = shapes.parent / f'valid{os.getpid()}.json'
    path.write_text(json.dumps(content))
    config = coco(shapes, path, with_mask)
    seen = {one['category_id'] for one in content['annotations'] if not one['iscrowd']}
    assert {fault.kind for fault in faults_of(config)} == (set() if len(seen) == 3 else {'class never seen'})
    assert assert_refused_or_passed(config)
    assert_trains(config)


@st.composite
def bad_boxes(draw) -> Any:
    """Draws a box that is invalid or outside of the image, in one of several ways."""
    box, place = draw(valid_boxes()), draw(st.integers(0, 3))
    kind = draw(st.integers(0, 4))
    if kind == 0:
        return draw(st.one_of(st.none(), st.text(max_size=4), st.lists(st.floats(1, 9), max_size=3), st.integers()))
    if kind == 1:
        box[place] = draw(st.sampled_from([float('nan'), float('inf'), '3', None, [1], True]))
    elif kind == 2:
        box[2 + place % 2] = draw(st.floats(-1000, 0))
    elif kind == 3:
        box[place % 2] = draw(st.floats(-1000, -SIDE))
    else:
        box[place % 2] = SIDE + draw(st.floats(0, 1000))
    return box


@cases('annotations', 200, quick=10)(st.integers(0, 60), bad_boxes())
def test_every_bad_box_is_reported(shapes, annotations, number, box):
    content = json.loads(annotations)
    was = change(content, ('annotations', number, 'bbox', None), box)
    path = shapes.parent / f'box{os.getpid()}.json'
    path.write_text(json.dumps(content))
    faults = faults_of(coco(shapes, path, False))
    found = [fault for fault in faults if fault.kind in ('empty box', 'box outside', 'invalid box')]
    assert len(found) == 1
    assert f'annotation {was["id"]}:' in found[0].text
    assert {fault.kind for fault in faults} - {found[0].kind} <= {'class never seen', 'dropped objects'}


@cases('annotations', 200, quick=10)(st.data())
def test_damaged_files_are_named_or_train(shapes, annotations, data):
    whole = annotations.encode()
    kind = data.draw(
        st.sampled_from(['truncated', 'noise', 'flipped', 'utf-16', 'bom', 'nested', 'json']), label='kind'
    )
    place = data.draw(st.integers(0, len(whole) - 1), label='byte')
    if kind == 'truncated':
        content = whole[:place]
    elif kind == 'noise':
        noise = data.draw(
            st.one_of(st.binary(min_size=1, max_size=5), st.sampled_from([b'[' * 9, b'}', b'\xff', b'1e999']))
        )
        content = whole[:place] + noise + whole[place + data.draw(st.sampled_from([0, len(noise)])) :]
    elif kind == 'flipped':
        content = whole[:place] + bytes([whole[place] ^ 1 << data.draw(st.integers(0, 7))]) + whole[place + 1 :]
    elif kind == 'utf-16':
        content = annotations.encode('utf-16')
    elif kind == 'bom':
        content = b'\xef\xbb\xbf' + whole
    elif kind == 'nested':
        depth = data.draw(st.sampled_from([10, 100_000]))
        content = b'{"images": ' + b'[' * depth + b']' * depth + b'}'
    else:
        content = json.dumps(data.draw(st.one_of(ODD, st.fixed_dictionaries(
            dict.fromkeys(('images', 'annotations', 'categories'), ODD))))).encode()  # fmt: skip
    path = shapes.parent / f'damaged{os.getpid()}.json'
    path.write_bytes(content)
    config = coco(shapes, path, data.draw(st.booleans(), label='with_mask'))
    faults = faults_of(config)
    passed = assert_refused_or_passed(config)
    if not faults:
        assert passed
        assert_trains(config)


@cases('annotations', 15, quick=1)(st.lists(st.tuples(places(), st.one_of(ODD, st.just(MISSING))), max_size=5))
def test_the_tool_reports_all_and_plots(shapes, annotations, mutations):
    content = json.loads(annotations)
    for place, value in mutations:
        change(content, place, value)
    folder = shapes.parent / f'tool{os.getpid()}'
    folder.mkdir(exist_ok=True)
    (folder / 'changed.json').write_text(json.dumps(content))
    options = [f'data_root={shapes}', f'train_dataloader.dataset.ann_file={folder / "changed.json"}']
    out = folder / 'drawn.png'
    out.unlink(missing_ok=True)
    with pytest.MonkeyPatch.context() as patch, io.StringIO() as printed:
        patch.setattr('sys.stdout', printed)
        code = check_dataset.main(
            [str(ROOT / 'configs/demo/retinanet_shapes.py'), '--out', str(out), '--cfg-options', *options]
        )
        summary = json.loads(printed.getvalue().splitlines()[-1])
    assert code == int(summary['faults'] > 0)
    if not mutations:
        assert code == 0
    assert Image.open(out).size > (100, 100)


# ------------------------------------------------------------------------------------------------------- label maps


def maps(root: Path, labels: Path, reduce_zero_label: bool) -> Config:
    """A minimal config of a segmentor of the shapes."""
    load = dict(type='LoadAnnotations', reduce_zero_label=reduce_zero_label)
    classes = CLASSES if reduce_zero_label else ('background', *CLASSES)
    dataset = dict(
        type='BaseSegDataset', data_root=f'{root}/',
        data_prefix=dict(img_path='images/training', seg_map_path=str(labels)),
        metainfo=dict(classes=classes, palette=[[0, 0, 0]] * len(classes)), reduce_zero_label=reduce_zero_label,
        pipeline=[dict(type='LoadImageFromFile'), load, dict(type='PackSegInputs')],
    )  # fmt: skip
    head = dict(num_classes=len(classes), ignore_index=255)
    return Config(
        dict(
            default_scope='mmseg',
            model=dict(type='EncoderDecoder', decode_head=head),
            train_dataloader=dict(batch_size=2, dataset=dataset),
        )
    )


@pytest.fixture(scope='module')
def label_maps(shapes, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('maps')
    for path in (shapes / 'annotations/training').glob('*.png'):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@cases('annotations', 200, quick=12)(
    st.integers(0, 11),
    st.sampled_from(['labels'] * 3 + ['16 bits', 'colours', 'palette', 'size', 'truncated', 'noise', 'gone']),
    st.lists(st.tuples(*[st.integers(0, SIDE - 1)] * 2, st.integers(0, 255)), min_size=1, max_size=4),
    st.booleans(),
)  # fmt: skip
def test_label_maps_are_valid_or_named(shapes, label_maps, number, kind, pixels, reduce_zero_label):
    path = sorted(label_maps.iterdir())[number]
    whole = path.read_bytes()
    labels = np.asarray(Image.open(io.BytesIO(whole))).copy()
    for row, column, value in pixels:
        labels[row, column] = value
    buffer = io.BytesIO()
    if kind == '16 bits':
        Image.fromarray(labels.astype(np.uint16) * 257).save(buffer, 'png')
    elif kind == 'colours':
        Image.fromarray(labels).convert('RGB').save(buffer, 'png')
    elif kind == 'palette':
        image = Image.fromarray(labels, 'P')
        image.putpalette([channel for index in range(256) for channel in (index, 255 - index, 7)])
        image.save(buffer, 'png')
    elif kind == 'size':
        Image.fromarray(labels[: SIDE - 1 - pixels[0][0] % 9]).save(buffer, 'png')
    else:
        Image.fromarray(labels).save(buffer, 'png')
    content = buffer.getvalue()
    if kind == 'truncated':
        content = content[: pixels[0][2] % (len(content) - 20)]
    elif kind == 'noise':
        content = bytes(value for pixel in pixels for value in pixel)
    config = maps(shapes, label_maps, reduce_zero_label)
    try:
        path.write_bytes(content)
        if kind == 'gone':
            path.unlink()
        faults = faults_of(config)
        passed = assert_refused_or_passed(config)
    finally:
        path.write_bytes(whole)
    assert all(path.name in fault.text for fault in faults)
    found = {fault.kind for fault in faults}
    if kind in ('truncated', 'noise'):
        assert found == {'unreadable label map'}
    elif kind == 'gone':
        assert found == {'missing label map'}
    elif kind in ('colours', 'size'):
        assert 'wrong size' in found
    elif kind in ('labels', 'palette'):
        # 0 is ignored if it is not a class, and then 1 is the first
        allowed = {0, 1, 2, 3, 255}
        assert found == ({'label outside'} if set(np.unique(labels)) - allowed else set())
    assert passed or found
    if found - {'wrong size', 'missing label map'}:
        assert not passed


MASK_SIZE = st.tuples(st.integers(1, 9), st.integers(1, 9))


@cases('annotations', 300, quick=15)(
    MASK_SIZE,
    st.one_of(
        ODD,
        st.lists(st.lists(st.one_of(st.floats(-3, 12), ODD), max_size=10), max_size=3),
        st.builds(lambda size, counts: dict(size=list(size), counts=counts), MASK_SIZE,
                  st.one_of(st.text(alphabet=[chr(c) for c in range(48, 112)], max_size=8), st.binary(max_size=6),
                            st.lists(st.one_of(st.integers(-2, 60), ODD), max_size=6))),
    ),
)  # fmt: skip
def test_masks_without_a_fault_decode_to_the_image(size, mask):
    from pycocotools import mask as coco_mask

    fault = mask_fault(mask, size)
    if fault:
        assert_clear(fault)
        return
    if isinstance(mask, dict):
        lengths = mask['counts'] if isinstance(mask['counts'], list) else decode_run_lengths(mask['counts'])
        assert all(isinstance(length, int) and length >= 0 for length in lengths)
        assert sum(lengths) == math.prod(size)
        mask = coco_mask.frPyObjects(mask, *size) if isinstance(mask['counts'], list) else mask
        assert coco_mask.decode(mask).shape == size
    elif mask:
        assert coco_mask.decode(coco_mask.frPyObjects(mask, *size)).shape == (*size, len(mask))
