"""What is broken in the data of a config: every image, annotation and label map that training and testing read."""

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
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Polygon, Rectangle
from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS, init_default_scope
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track

from pvt_mm.analysis.predictions import COLORS
from pvt_mm.datasets import ImageFolder
from pvt_mm.engine.checks import LAYOUTS, leaves
from pvt_mm.errors import WRONG_CONFIG, InputError

SLACK = 1.0  # pixels by which a box may leave its image: COCO's own are rounded
FARTHEST = 1e6  # pixels from an image at which no annotation is; pycocotools overruns its memory at some 1e9


class Fault(NamedTuple):
    """One broken thing: of what kind, in which split, and where and what in a line."""

    kind: str
    split: str
    text: str


@dataclass
class Item:
    """An image and what its split says of it.

    Attributes:
        path: The image file.
        size: (H, W) in pixels as the annotations have it, None where they do not say.
        annotations: COCO's, as the json has them.
        seg_map: What MMSegmentation's ``LoadAnnotations`` takes, None in other layouts.
        label: The class of the whole image, None in other layouts.
        sound: The class and annotation of what a check has found nothing wrong with.
    """

    path: str
    size: tuple[int, int] | None = None
    annotations: list[dict] = field(default_factory=list)
    seg_map: dict | None = None
    label: int | None = None
    sound: list[tuple[int, dict]] = field(default_factory=list)


@dataclass
class Split:
    """A data set of a config, under the name of the splits that read it, and what checking has found.

    Attributes:
        name: ``train``, ``val``, ``test`` or ``val, test``.
        classes: The names of the classes that are trained on.
        items: The images.
        labels: COCO's category ids, of the json; a class's index, or None where it is not trained on.
        with_mask: Whether the pipeline loads masks.
        load_map: The pipeline's step that reads label maps.
        ignored: The label of pixels that do not count.
        seen: How many annotations (label maps: images) have each class.
        others: How many annotations are of categories that are not trained on.
        faults: What is broken.
        remarks: What need not be.
    """

    name: str
    classes: list[str]
    items: list[Item] = field(default_factory=list)
    labels: dict[int, int | None] = field(default_factory=dict)
    with_mask: bool = False
    load_map: Any = None
    ignored: int = 255
    seen: Counter = field(default_factory=Counter)
    others: int = 0
    faults: list[Fault] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def add(self, kind: str, text: str) -> None:
        """Notes a fault, in a line."""
        self.faults.append(Fault(kind, self.name, ' '.join(text.split())))


def check_datasets(config: Config) -> list[Split]:
    """Reads all that the train, val and test data sets of a config would, in parallel, and notes what is broken.

    COCO's layout, MMSegmentation's label maps and :class:`ImageFolder` can be read, and wrappers around them.

    Returns:
        The data sets, with their faults; val and test are one where they read the same.

    Raises:
        InputError: None of the data is there, or a data set is of another kind or cannot be built.
    """
    init_default_scope(config.get('default_scope', 'mmengine'))
    splits = [_open(name, cfg, config) for name, cfg in _data_sets(config)]
    if not splits:
        raise InputError('the config has no train_dataloader, val_dataloader or test_dataloader: there is no data')
    if not any(split.items for split in splits) and all(fault[0] == 'missing' for s in splits for fault in s.faults):
        raise InputError(f'the data is not there: {splits[0].faults[0].text}; say where with data_root=PATH')
    work = [(split, item) for split in splits for item in split.items]
    digests: dict[bytes, tuple[Split, str]] = {}
    with ThreadPoolExecutor() as threads:
        checked = _map(threads, lambda one: _check(*one), work)
        shown = track(checked, 'reading the data', len(work), console=Console(stderr=True), transient=True)
        for (split, item), (faults, seen, others, digest) in zip(work, shown, strict=True):
            split.faults += faults
            split.seen += seen
            split.others += others
            other, path = digests.setdefault(digest, (split, item.path)) if digest else (split, '')
            if other.name != split.name and (path != item.path or 'train' in (other.name, split.name)):
                split.add('duplicate', f'{item.path} is the picture of the {other.name} data at {path}')
    for split in splits:
        seen = sum((one.seen for one in splits if one.name == split.name), Counter())  # of data that is joined
        unseen = [name for i, name in enumerate(split.classes) if not seen[i]]
        if unseen and split.items:
            names = ', '.join(unseen[:10]) + (' …' if len(unseen) > 10 else '')
            text = f'{len(unseen)} of {len(split.classes)} classes have no example: {names}'
            if split.name == 'train':
                split.add('class never seen', text)
            else:
                split.remarks.append(text)
    _compare_classes(splits)
    return splits


def _data_sets(config: Config) -> Iterator[tuple[str, dict]]:
    """Yields the name and config of each data set; what val and test both read is one."""
    found = [
        (name, leaf)
        for name in ('train', 'val', 'test')
        if config.get(f'{name}_dataloader')
        for leaf in leaves(config[f'{name}_dataloader'].dataset)
    ]
    read = [(name, _files(leaf)) for name, leaf in found]
    for (name, leaf), (_, files) in zip(found, read, strict=True):
        if name == 'val' and ('test', files) in read:
            yield 'val, test', leaf
        elif name != 'test' or ('val', files) not in read:
            yield name, leaf


def _files(leaf: dict) -> list:
    """Returns what says which files a data set reads."""
    return [leaf.get(key) for key in ('data_root', 'ann_file', 'data_prefix', 'indices')]


def _map(threads: ThreadPoolExecutor, function: Any, work: Iterable, at_once: int = 1024) -> Iterator:
    """Yields what ``ThreadPoolExecutor.map`` does, without submitting a million images at once."""
    work = iter(work)
    while batch := list(islice(work, at_once)):
        yield from threads.map(function, batch)


# ------------------------------------------------------------------------------------------------------ the layouts


def _open(name: str, cfg: dict, config: Config) -> Split:
    """Lists what a data set reads, without reading images."""
    try:
        with DATASETS.switch_scope_and_registry(None) as registry:
            dataset = registry.build({**cfg, 'pipeline': [], 'lazy_init': True})
    except InputError:
        raise
    except WRONG_CONFIG as error:
        raise InputError(f'the {name} data cannot be built: {type(error).__name__}: {error}') from error
    split = Split(name, list(dataset.metainfo.get('classes') or ()))
    readers = {ImageFolder: _list_folders}
    with contextlib.suppress(ImportError):  # either may be absent
        from mmdet.datasets import CocoDataset

        readers[CocoDataset] = _list_coco
    with contextlib.suppress(ImportError):
        from mmseg.datasets import BaseSegDataset

        readers[BaseSegDataset] = _list_maps
    reader = next((reader for kind, reader in readers.items() if isinstance(dataset, kind)), None)
    if reader is None:
        raise InputError(f'the {name} data is a {cfg["type"]}: COCO, MMSegmentation maps and ImageFolder are read')
    paths = [dataset.ann_file, *dataset.data_prefix.values()]
    absent = [path for path in paths if path and '://' not in path and not os.path.exists(path)]
    layout = LAYOUTS.get(cfg['type'].split('.')[-1], 'data_root, ann_file and data_prefix say what is read')
    for path in absent:
        split.add('missing', f'{path} does not exist; {layout}')
    if not absent:
        reader(split, dataset, cfg.get('pipeline') or [], config)
    if split.items and cfg.get('indices') is not None:
        _keep_indices(split, dataset)
    return split


def _keep_indices(split: Split, dataset: Any) -> None:
    """Leaves the items that a data set's ``indices`` choose, of those that its filter leaves."""
    try:
        with contextlib.redirect_stdout(None):  # pycocotools says that it reads
            dataset.full_init()
    except WRONG_CONFIG:  # damaged annotations: all are checked
        return
    chosen = {dataset.get_data_info(i)['img_path'] for i in range(len(dataset))}
    split.items = [item for item in split.items if item.path in chosen]


def _step(pipeline: Sequence[dict], name: str) -> dict | None:
    return next((step for step in pipeline if step['type'].split('.')[-1] == name), None)


def _list_coco(split: Split, dataset: Any, pipeline: Sequence[dict], config: Config) -> None:
    try:
        content = json.loads(Path(dataset.ann_file).read_text(encoding='utf-8'))  # as training reads it
        names = {category['id']: category['name'] for category in content['categories']}
        if not all(isinstance(name, str) for name in names.values()):
            raise ValueError(f'its categories have names that are no text: {list(names.values())[:5]}')
        items = {}
        for image in content['images']:
            path = os.path.join(dataset.data_prefix.get('img', ''), image['file_name'])
            if image['id'] in items:
                split.add('damaged annotations', f'{dataset.ann_file} has two images of the id {image["id"]}')
            items[image['id']] = Item(path, (image['height'], image['width']))
        for annotation in content['annotations']:
            if annotation['image_id'] in items:
                items[annotation['image_id']].annotations.append(annotation)
            else:
                text = (
                    f'annotation {annotation.get("id")} is of the image {annotation["image_id"]}, which is not listed'
                )
                split.add('missing image', f'{dataset.ann_file}: {text}')
        ids = Counter(annotation['id'] for annotation in content['annotations'])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f'it has no {error}' if isinstance(error, KeyError) else f'{type(error).__name__}: {error}'
        split.add('damaged annotations', f'{dataset.ann_file} is no COCO annotation file: {what}')
        return
    twice = [str(key) for key, count in ids.items() if count > 1]
    if twice:
        split.add('damaged annotations', f'{dataset.ann_file} has several annotations of the id {", ".join(twice[:5])}')
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
        split.classes = []  # nothing to see them in
        return
    with TRANSFORMS.switch_scope_and_registry(None) as registry:
        split.load_map = registry.build(step)
    heads = config.model.get('module', config.model).get('decode_head') or {}
    split.ignored = (heads[-1] if isinstance(heads, list) else heads).get('ignore_index', 255)
    if not os.path.isfile(dataset.ann_file):  # then the images there are the list, and a lost one is missed by none
        listed = {os.path.normpath(info['seg_map_path']) for info in infos}
        maps = (os.path.normpath(path) for path in Path(folder).rglob(f'*{dataset.seg_map_suffix}'))
        for path in sorted(set(maps) - listed):
            stem = os.path.relpath(path, folder).removesuffix(dataset.seg_map_suffix)
            image = os.path.join(dataset.data_prefix['img_path'], stem + dataset.img_suffix)
            split.add('missing image', f'{image} does not exist, and its label map {path} does')


def _list_folders(split: Split, dataset: Any, pipeline: Sequence[dict], config: Config) -> None:
    try:
        split.items = [Item(info['img_path'], label=info['gt_label']) for info in dataset.load_data_list()]
    except InputError as error:
        split.add('missing', str(error))
    split.classes = list(dataset.metainfo.get('classes') or ())


def _compare_classes(splits: Sequence[Split]) -> None:
    """Notes classes of an ImageFolder's test data that its training data has no folder of."""
    folders = [split for split in splits if any(item.label is not None for item in split.items)]
    trained = {name for split in folders if split.name == 'train' for name in split.classes}
    for split in folders:
        unknown = [name for name in split.classes if name not in trained]
        if trained and unknown:
            split.add('unknown category', f'the train data has no folder {", ".join(unknown)}')


# ---------------------------------------------------------------------------------------------------------- an image


class _Checked(NamedTuple):
    faults: list[Fault]
    seen: Counter
    others: int
    digest: bytes | None


def _check(split: Split, item: Item) -> _Checked:
    """Reads an image and checks what is said of it."""
    own = Split(split.name, split.classes, labels=split.labels, with_mask=split.with_mask)
    own.load_map, own.ignored = split.load_map, split.ignored
    size, digest = _read_image(own, item.path)
    if item.size and not _is_size(item.size):
        own.add('wrong size', f'{item.path}: the json has the size {item.size}, which is none')
    elif item.size and size and size != tuple(item.size):
        told = f'{item.size[1]} x {item.size[0]}'
        own.add('wrong size', f'{item.path} is {size[1]} x {size[0]} pixels, and the json says {told}')
    for annotation in item.annotations:
        _check_annotation(own, item, annotation)
    if item.label is not None and digest:
        own.seen[item.label] += 1
    if item.seg_map and own.load_map:
        _check_map(own, item.seg_map, size)
    return _Checked(own.faults, own.seen, own.others, digest)


def _is_size(size: Any) -> bool:
    return all(isinstance(side, int) and side > 0 for side in size)


def _read_image(split: Split, path: str) -> tuple[tuple[int, int] | None, bytes | None]:
    """Returns an image's (H, W), turned upright as mmcv turns it, and a digest of its pixels."""
    try:
        image = read_upright(path)
    except FileNotFoundError:
        split.add('missing image', f'{path} does not exist')
    except Exception as error:  # decoders raise anything
        why = str(error).replace(f" '{path}'", '') or type(error).__name__
        split.add('damaged image', f'{path}: {why}')
    else:
        return (image.height, image.width), hashlib.blake2b(
            image.tobytes(), digest_size=16, key=f'{image.size}'.encode()
        ).digest()
    return None, None


def read_upright(path: str) -> Image.Image:
    """Reads a whole image as RGB, turned as its EXIF data says; raises whatever Pillow does."""
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert('RGB')


def _check_annotation(split: Split, item: Item, annotation: dict) -> None:
    where = f'{item.path}, annotation {annotation.get("id")}'
    category, box = annotation.get('category_id'), annotation.get('bbox')
    known = isinstance(category, (int, str)) and category in split.labels
    if not known:
        split.add('unknown category', f'{where}: the json has no category {category}')
    if not isinstance(box, (list, tuple)) or len(box) != 4 or not all(_is_number(value) for value in box):
        split.add('empty box', f'{where}: the box {box} is not [x, y, width, height]')
        return
    x, y, w, h = box
    H, W = item.size
    empty = w <= 0 or h <= 0
    if empty:
        split.add('empty box', f'{where}: the box {box} is {w:g} x {h:g} pixels')
    elif _is_size(item.size) and (min(x, y) < -SLACK or x + w > W + SLACK or y + h > H + SLACK):
        split.add('box outside', f'{where}: the box {box} leaves the image of {W} x {H} pixels')
    area = annotation.get('area')
    if not _is_number(area, FARTHEST**2):
        split.add('damaged annotations', f'{where}: the area {area}, which training reads, is no number')
    mask = annotation.get('segmentation')
    fault = mask_fault(mask, item.size) if mask and _is_size(item.size) else 'there is none' if split.with_mask else ''
    if fault:
        split.add('bad mask', f'{where}: {fault}')
    label = split.labels[category] if known else None
    if label is None:
        split.others += known
    elif not empty:
        split.seen[label] += not (annotation.get('iscrowd') or annotation.get('ignore'))
        if not fault:
            item.sound.append((label, annotation))


def _is_number(value: Any, most: float = FARTHEST) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= most


def mask_fault(mask: Any, size: tuple[int, int]) -> str:
    """Returns what keeps a mask of COCO, polygons or run lengths, from decoding to ``size`` (H, W); '' where nothing.

    The run lengths are counted here, since pycocotools writes past its memory where they are wrong.
    """
    H, W = size
    if isinstance(mask, list):
        for polygon in mask:
            if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
                return 'a polygon is not a list of three or more x, y'
            if not all(map(_is_number, polygon)):
                return 'a polygon has what is no number'
            if max(polygon[::2]) <= 0 or max(polygon[1::2]) <= 0 or min(polygon[::2]) >= W or min(polygon[1::2]) >= H:
                return f'a polygon lies outside the image of {W} x {H} pixels'
        return ''
    if not isinstance(mask, dict) or 'counts' not in mask:
        return f'the mask is a {type(mask).__name__}, and neither polygons nor run lengths'
    if mask.get('size') not in ([H, W], (H, W)):
        return f'the run lengths are for the size {mask.get("size")}, and the image is [{H}, {W}]'
    try:
        counts = mask['counts'] if isinstance(mask['counts'], list) else _run_lengths(mask['counts'])
        total = sum(counts)
    except (ValueError, TypeError, AttributeError) as error:
        return f'the run lengths do not decode: {error}'
    if min(counts, default=0) < 0 or total != H * W:
        return f'the run lengths are of {total} pixels, and the image has {H * W}'
    return ''


def _run_lengths(text: str | bytes) -> list[int]:
    """Decodes COCO's compressed run lengths: 5 bits a character, each count from the third on a difference."""
    counts, value, shift = [], 0, 0
    for char in text.encode() if isinstance(text, str) else text:
        bits = char - 48
        if not 0 <= bits < 64:
            raise ValueError(f'the character {chr(char)!r} is none of theirs')
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << (shift - 4) if bits & 16 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError('they are cut off')
    return counts


def _check_map(split: Split, info: dict, size: tuple[int, int] | None) -> None:
    path = info['seg_map_path']
    try:
        labels = split.load_map(dict(info))['gt_seg_map']
    except FileNotFoundError:
        split.add('missing label map', f'{path} does not exist, and its image {info["img_path"]} does')
        return
    except Exception as error:  # decoders raise anything
        split.add('damaged label map', f'{path}: {error}')
        return
    if size and labels.shape != size:
        shape = ' x '.join(map(str, labels.shape[::-1]))
        split.add('wrong size', f'{path} is {shape} pixels, and its image is {size[1]} x {size[0]}')
    values, counts = np.unique(labels[labels != split.ignored], return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        if 0 <= value < len(split.classes):
            split.seen[value] += 1
        else:
            reduced = ' once reduce_zero_label has taken 1 off' if info.get('reduce_zero_label') else ''
            text = f'{count} pixels have the label {value}{reduced}, and the classes are 0 to {len(split.classes) - 1}'
            split.add('label outside', f'{path}: {text}')


# --------------------------------------------------------------------------------------------------------- a picture


def plot_samples(splits: Sequence[Split], count: int = 6, title: str = '') -> Figure | None:
    """Draws ``count`` images evenly spaced through the first split that can be read, with their annotations.

    Returns:
        The figure, or None where no image can be read.
    """
    for split in splits:
        drawn = []
        for index in np.linspace(0, len(split.items) - 1, min(len(split.items), 4 * count)).round().astype(int):
            try:
                drawn.append((split.items[index], np.asarray(read_upright(split.items[index].path))))
            except Exception:  # it is among the faults
                continue
        drawn = [drawn[i] for i in np.linspace(0, len(drawn) - 1, min(count, len(drawn))).round().astype(int)]
        if drawn:
            break
    else:
        return None
    columns = min(3, len(drawn))
    rows = -(-len(drawn) // columns)
    shapes = [image.shape[0] / image.shape[1] for _, image in drawn]
    heights = [max(shapes[i : i + columns]) for i in range(0, len(shapes), columns)]
    figure = Figure(figsize=(3.6 * columns, 3.6 * sum(heights) + 0.3 * rows + 0.8), layout='constrained')
    used: list[int] = []
    for axis in (axes := figure.subplots(rows, columns, squeeze=False, height_ratios=heights)).flat:
        axis.set_axis_off()
    for axis, (item, image) in zip(axes.flat, drawn, strict=False):
        axis.imshow(image, interpolation='bicubic')
        axis.set_title(os.path.basename(item.path) if item.label is None else split.classes[item.label], fontsize=9)
        _draw(axis, split, item, used)
    names = [split.classes[label] for label in used]
    if len(names) > len(COLORS):
        names[len(COLORS) - 1 :] = ['other classes']
    if names:
        handles = [Patch(facecolor=color, label=name) for color, name in zip(COLORS, names, strict=False)]
        figure.legend(handles=handles, loc='outside lower center', ncols=min(8, len(handles)), frameon=False)
    figure.suptitle(title or f'the {split.name} data', fontsize=11)
    return figure


def _color(used: list[int], label: int) -> str:
    """Returns a class's colour: those first met have one of their own, the others share black."""
    if label not in used:
        used.append(label)
    return COLORS[min(used.index(label), len(COLORS) - 1)]


def _draw(axis: Any, split: Split, item: Item, used: list[int]) -> None:
    for label, annotation in item.sound:
        box, color, mask = annotation['bbox'], _color(used, label), annotation.get('segmentation')
        for polygon in mask if isinstance(mask, list) else ():
            axis.add_patch(Polygon(np.reshape(polygon, (-1, 2)), alpha=0.4, color=color))
        x, y, w, h = box
        axis.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor='black', linewidth=2.6))
        axis.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor=color, linewidth=1.5))
    if item.seg_map and split.load_map:
        try:
            labels = split.load_map(dict(item.seg_map))['gt_seg_map']
        except Exception:  # it is among the faults
            return
        overlay = np.zeros((*labels.shape, 4))
        for label in np.unique(labels):
            if 0 <= label < len(split.classes) and label != split.ignored:
                color = _color(used, int(label)).lstrip('#')
                overlay[labels == label] = [*(int(color[i : i + 2], 16) / 255 for i in (0, 2, 4)), 0.6]
        axis.imshow(overlay, interpolation='nearest')
