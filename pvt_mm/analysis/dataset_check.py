"""Faults in the data of a config: checks every image, annotation and label map that training and testing would read."""

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS, init_default_scope
from rich.console import Console
from rich.progress import track

from pvt_mm.apis.checks import LAYOUTS
from pvt_mm.apis.config import SPLITS, leaf_datasets
from pvt_mm.datasets.image_io import read_image
from pvt_mm.utils.errors import WRONG_CONFIG, InputError, config_errors
from pvt_mm.utils.text import shorten

SLACK = 1.0  # pixels by which a box may exceed its image: COCO's boxes are rounded
MAX_COORDINATE = 1e6  # pixels; pycocotools corrupts memory from about 1e9 on


class Fault(NamedTuple):
    """A fault: its kind, its split, and a line that says where and what it is."""

    kind: str
    split: str
    text: str


@dataclass
class Findings:
    """Faults and class counts of a split, or of one of its images."""

    name: str  # of the split: train, val, test, or 'val, test' if both read the same data
    faults: list[Fault] = field(default_factory=list)
    # Annotations (images, for label maps and folders) by class index; by None for categories that are not trained on.
    seen: Counter = field(default_factory=Counter)

    def add(self, kind: str, text: str) -> None:
        """Adds a fault."""
        self.faults.append(Fault(kind, self.name, ' '.join(text.split())))


@dataclass
class Item:
    """An image and its annotations."""

    path: str
    size: tuple[int, int] | None = None  # (H, W) in pixels according to the annotations
    annotations: list[dict] = field(default_factory=list)  # as in COCO's json
    seg_map: dict | None = None  # the input of MMSegmentation's LoadAnnotations
    label: int | None = None  # the class index of the whole image
    valid: list[tuple[int, dict]] = field(default_factory=list)  # class index and faultless annotation


@dataclass
class Split(Findings):
    """A data set of a config with its findings."""

    classes: list[str] = field(default_factory=list)  # that are trained on
    items: list[Item] = field(default_factory=list)
    labels: dict[int, int | None] = field(default_factory=dict)  # by COCO category id; None: not trained on
    with_mask: bool = False  # whether the pipeline loads masks
    load_map: Any = None  # the pipeline's transform that loads label maps
    ignored: int = 255  # the label of ignored pixels
    remarks: list[str] = field(default_factory=list)  # that are not faults


def check_datasets(config: Config) -> list[Split]:
    """Checks all data that the train, val and test data sets of a config read, in parallel.

    Supports COCO's layout, MMSegmentation's label maps, ``ImageFolder``, and wrappers around them. Returns the data
    sets with their findings; val and test are one if they read the same files.

    Raises:
        InputError: There is no data at all, or a data set cannot be built or is of another kind.
    """
    init_default_scope(config.get('default_scope', 'mmengine'))
    splits = [_open(name, cfg, config) for name, cfg in _data_sets(config)]
    if not splits:
        raise InputError('the config has no train_dataloader, val_dataloader or test_dataloader: there is no data')
    if not any(split.items for split in splits) and all(f.kind == 'missing' for split in splits for f in split.faults):
        raise InputError(f'the data does not exist: {splits[0].faults[0].text}; set data_root=PATH')
    work = [(split, item) for split in splits for item in split.items]
    digests: dict[bytes, tuple[Split, str]] = {}
    with ThreadPoolExecutor() as threads:
        checked = _map(threads, lambda one: _check(*one), work)
        shown = track(checked, 'reading the data', len(work), console=Console(stderr=True), transient=True)
        for (split, item), (found, digest) in zip(work, shown, strict=True):
            split.faults += found.faults
            split.seen += found.seen
            other, path = digests.setdefault(digest, (split, item.path)) if digest else (split, '')
            if other.name != split.name and (path != item.path or 'train' in (other.name, split.name)):
                split.add('duplicate', f'{item.path} has the same pixels as {path} of the {other.name} data')
    for split in splits:
        seen = sum((other.seen for other in splits if other.name == split.name), Counter())  # of concatenated data
        unseen = [name for i, name in enumerate(split.classes) if not seen[i]]
        if unseen and split.items:
            text = f'{len(unseen)} of {len(split.classes)} classes have no example: {shorten(unseen, limit=10)}'
            if split.name == 'train':
                split.add('class never seen', text)
            else:
                split.remarks.append(text)
    folders = [split for split in splits if any(item.label is not None for item in split.items)]
    trained = {name for split in folders if split.name == 'train' for name in split.classes}
    for split in folders:
        unknown = [name for name in split.classes if name not in trained]
        if trained and unknown:
            split.add('unknown category', f'the train data has no folder {shorten(unknown)}')
    return splits


def _data_sets(config: Config) -> Iterator[tuple[str, dict]]:
    """Yields the name and config of each data set; val and test are one if they read the same files."""
    loaders = {name: config[f'{name}_dataloader'] for name in SPLITS if config.get(f'{name}_dataloader')}
    found = [(name, leaf) for name, loader in loaders.items() for leaf in leaf_datasets(loader.dataset)]
    keys = ('data_root', 'ann_file', 'data_prefix', 'indices')
    read = [(name, [leaf.get(key) for key in keys]) for name, leaf in found]
    for (name, leaf), (_, files) in zip(found, read, strict=True):
        if name == 'val' and ('test', files) in read:
            yield 'val, test', leaf
        elif name != 'test' or ('val', files) not in read:
            yield name, leaf


def _map(threads: ThreadPoolExecutor, function: Any, work: Iterable, batch_size: int = 1024) -> Iterator:
    """Yields the results of ``ThreadPoolExecutor.map`` in batches, since it would submit millions of images at once."""
    work = iter(work)
    while batch := list(islice(work, batch_size)):
        yield from threads.map(function, batch)


def _open(name: str, cfg: dict, config: Config) -> Split:
    """Lists the images and annotations of a data set, without reading images."""
    with config_errors(f'the {name} data cannot be built'), DATASETS.switch_scope_and_registry(None) as registry:
        dataset = registry.build({**cfg, 'pipeline': [], 'lazy_init': True})
    split = Split(name, classes=list(dataset.metainfo.get('classes') or ()))
    readers = {  # by name, since MMDetection and MMSegmentation are optional
        'mmdet.CocoDataset': _list_coco,
        'mmseg.BaseSegDataset': _list_maps,
        'pvt_mm.ImageFolder': _list_folders,
    }
    bases = (f'{base.__module__.split(".")[0]}.{base.__name__}' for base in type(dataset).__mro__)
    reader = next((readers[base] for base in bases if base in readers), None)
    if reader is None:
        supported = 'only COCO, MMSegmentation label maps and ImageFolder are supported'
        raise InputError(f'the {name} data is a {cfg["type"]}: {supported}')
    paths = [dataset.ann_file, *dataset.data_prefix.values()]
    absent = [path for path in paths if path and '://' not in path and not os.path.exists(path)]
    layout = LAYOUTS.get(cfg['type'].split('.')[-1], 'set data_root, ann_file and data_prefix')
    for path in absent:
        split.add('missing', f'{path} does not exist; {layout}')
    if not absent:
        reader(split, dataset, cfg.get('pipeline') or [], config)
    if split.items and cfg.get('indices') is not None:
        # Invalid annotations fail: then all items are checked. pycocotools prints.
        with contextlib.suppress(*WRONG_CONFIG), contextlib.redirect_stdout(None):
            dataset.full_init()
            chosen = {dataset.get_data_info(i)['img_path'] for i in range(len(dataset))}
            split.items = [item for item in split.items if item.path in chosen]
    return split


def _step(pipeline: Sequence[dict], name: str) -> dict | None:
    return next((step for step in pipeline if step['type'].split('.')[-1] == name), None)


def _list_coco(split: Split, dataset: Any, pipeline: Sequence[dict], config: Config) -> None:
    try:
        content = json.loads(Path(dataset.ann_file).read_text(encoding='utf-8'))  # as training reads it
        names = {category['id']: category['name'] for category in content['categories']}
        if not all(isinstance(name, str) for name in names.values()):
            raise ValueError(f'a category name is not a string: {shorten(names.values())}')
        items = {}
        for image in content['images']:
            path = os.path.join(dataset.data_prefix.get('img', ''), image['file_name'])
            if image['id'] in items:
                split.add('invalid annotations', f'{dataset.ann_file}: two images have the id {image["id"]}')
            items[image['id']] = Item(path, (image['height'], image['width']))
        for annotation in content['annotations']:
            if annotation['image_id'] in items:
                items[annotation['image_id']].annotations.append(annotation)
            else:
                text = f'annotation {annotation.get("id")} is of image {annotation["image_id"]}, which is not listed'
                split.add('missing image', f'{dataset.ann_file}: {text}')
        ids = Counter(annotation['id'] for annotation in content['annotations'])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f'it has no {error}' if isinstance(error, KeyError) else f'{type(error).__name__}: {error}'
        split.add('invalid annotations', f'{dataset.ann_file} is not a COCO annotation file: {what}')
        return
    repeated = [key for key, count in ids.items() if count > 1]
    if repeated:
        split.add('invalid annotations', f'{dataset.ann_file}: several annotations have the id {shorten(repeated)}')
    index = {name: i for i, name in enumerate(split.classes)}
    split.labels = {key: index.get(name) for key, name in names.items()}
    split.items = list(items.values())
    split.with_mask = bool((_step(pipeline, 'LoadAnnotations') or {}).get('with_mask'))


def _list_maps(split: Split, dataset: Any, pipeline: Sequence[dict], config: Config) -> None:
    step = _step(pipeline, 'LoadAnnotations')
    infos = dataset.load_data_list()
    split.items = [Item(info['img_path'], seg_map=info if 'seg_map_path' in info else None) for info in infos]
    folder = dataset.data_prefix.get('seg_map_path')
    if not folder or not step:
        split.classes = []  # without label maps no class has examples
        return
    with TRANSFORMS.switch_scope_and_registry(None) as registry:
        split.load_map = registry.build(step)
    heads = config.model.get('module', config.model).get('decode_head') or {}
    split.ignored = (heads[-1] if isinstance(heads, list) else heads).get('ignore_index', 255)
    if not os.path.isfile(dataset.ann_file):  # the images on disk are the list, so look for maps without an image
        listed = {os.path.normpath(info['seg_map_path']) for info in infos}
        maps = (os.path.normpath(path) for path in Path(folder).rglob(f'*{dataset.seg_map_suffix}'))
        for path in sorted(set(maps) - listed):
            stem = os.path.relpath(path, folder).removesuffix(dataset.seg_map_suffix)
            image = os.path.join(dataset.data_prefix['img_path'], stem + dataset.img_suffix)
            split.add('missing image', f'{image} of the label map {path} does not exist')


def _list_folders(split: Split, dataset: Any, pipeline: Sequence[dict], config: Config) -> None:
    try:
        split.items = [Item(info['img_path'], label=info['gt_label']) for info in dataset.load_data_list()]
    except InputError as error:
        split.add('missing', str(error))
    split.classes = list(dataset.metainfo.get('classes') or ())


def _check(split: Split, item: Item) -> tuple[Findings, bytes | None]:
    """Reads an image and checks its annotations; returns the findings and a digest of the pixels if it is readable."""
    found, size, digest = Findings(split.name), None, None
    try:
        image = read_image(item.path)
    except InputError as error:
        found.add('unreadable image' if os.path.exists(item.path) else 'missing image', str(error))
    else:
        size = image.shape[:2]
        digest = hashlib.blake2b(image, digest_size=16, key=f'{size}'.encode()).digest()
    if item.size and not _is_size(item.size):
        found.add('wrong size', f'{item.path}: the size {item.size} in the json is invalid')
    elif item.size and size and size != tuple(item.size):
        expected = f'{item.size[1]} x {item.size[0]}'
        found.add('wrong size', f'{item.path} has {size[1]} x {size[0]} pixels, the json says {expected}')
    for annotation in item.annotations:
        _check_annotation(found, split, item, annotation)
    if item.label is not None and digest:
        found.seen[item.label] += 1
    if item.seg_map and split.load_map:
        _check_map(found, split, item.seg_map, size)
    return found, digest


def _is_size(size: Any) -> bool:
    return all(isinstance(side, int) and side > 0 for side in size)


def _check_annotation(found: Findings, split: Split, item: Item, annotation: dict) -> None:
    where = f'{item.path}, annotation {annotation.get("id")}'
    category, box = annotation.get('category_id'), annotation.get('bbox')
    known = isinstance(category, (int, str)) and category in split.labels
    if not known:
        found.add('unknown category', f'{where}: the json has no category {category}')
    if not isinstance(box, (list, tuple)) or len(box) != 4 or not all(_is_number(value) for value in box):
        found.add('empty box', f'{where}: the box {box} is not [x, y, width, height]')
        return
    x, y, w, h = box
    H, W = item.size
    if empty := w <= 0 or h <= 0:
        found.add('empty box', f'{where}: the box {box} has {w:g} x {h:g} pixels')
    elif _is_size(item.size) and (min(x, y) < -SLACK or x + w > W + SLACK or y + h > H + SLACK):
        found.add('box outside', f'{where}: the box {box} exceeds the image of {W} x {H} pixels')
    if not _is_number(area := annotation.get('area'), MAX_COORDINATE**2):
        found.add('invalid annotations', f'{where}: the area {area}, which training reads, is not a number')
    mask, fault = annotation.get('segmentation'), ''
    if mask and _is_size(item.size):
        fault = mask_fault(mask, item.size)
    elif split.with_mask:
        fault = 'there is no mask'
    if fault:
        found.add('bad mask', f'{where}: {fault}')
    if known and (label := split.labels[category]) is None:
        found.seen[None] += 1
    elif known and not empty:
        found.seen[label] += not (annotation.get('iscrowd') or annotation.get('ignore'))
        if not fault:
            item.valid.append((label, annotation))


def _is_number(value: Any, maximum: float = MAX_COORDINATE) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= maximum


def mask_fault(mask: Any, size: tuple[int, int]) -> str:
    """Returns why a COCO mask, polygons or run lengths, does not decode to ``size`` (H, W); '' if it does.

    The run lengths are summed here, since pycocotools writes out of bounds if they are wrong.
    """
    H, W = size
    if isinstance(mask, list):
        for polygon in mask:
            if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
                return 'a polygon is not a list of three or more x, y'
            if not all(map(_is_number, polygon)):
                return 'a coordinate of a polygon is not a number'
            if max(polygon[::2]) <= 0 or max(polygon[1::2]) <= 0 or min(polygon[::2]) >= W or min(polygon[1::2]) >= H:
                return f'a polygon lies outside the image of {W} x {H} pixels'
        return ''
    if not isinstance(mask, dict) or 'counts' not in mask:
        return f'the mask is a {type(mask).__name__}, neither polygons nor run lengths'
    if mask.get('size') not in ([H, W], (H, W)):
        return f'the run lengths are for the size {mask.get("size")}, and the image is [{H}, {W}]'
    try:
        counts = mask['counts'] if isinstance(mask['counts'], list) else decode_run_lengths(mask['counts'])
        total = sum(counts)
    except (ValueError, TypeError, AttributeError) as error:
        return f'the run lengths do not decode: {error}'
    if min(counts, default=0) < 0 or total != H * W:
        return f'the run lengths are of {total} pixels, and the image has {H * W}'
    return ''


def decode_run_lengths(text: str | bytes) -> list[int]:
    """Decodes COCO's compressed run lengths: 5 bits per character, differences from the third count on.

    Raises:
        ValueError: A character is invalid, or the last count is truncated.
    """
    counts, value, shift = [], 0, 0
    for char in text.encode() if isinstance(text, str) else text:
        bits = char - 48
        if not 0 <= bits < 64:
            raise ValueError(f'the character {chr(char)!r} is invalid')
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << (shift - 4) if bits & 16 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError('they are truncated')
    return counts


def _check_map(found: Findings, split: Split, info: dict, size: tuple[int, int] | None) -> None:
    path = info['seg_map_path']
    try:
        labels = split.load_map(dict(info))['gt_seg_map']
    except FileNotFoundError:
        found.add('missing label map', f'{path} of the image {info["img_path"]} does not exist')
        return
    except Exception as error:  # decoders raise anything
        found.add('unreadable label map', f'{path}: {error}')
        return
    if size and labels.shape != size:
        shape = ' x '.join(map(str, labels.shape[::-1]))
        found.add('wrong size', f'{path} has {shape} pixels, its image has {size[1]} x {size[0]}')
    values, counts = np.unique(labels[labels != split.ignored], return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        if 0 <= value < len(split.classes):
            found.seen[value] += 1
        else:
            reduced = ' after reduce_zero_label' if info.get('reduce_zero_label') else ''
            text = f'{count} pixels have the label {value}{reduced}, and the classes are 0 to {len(split.classes) - 1}'
            found.add('label outside', f'{path}: {text}')
