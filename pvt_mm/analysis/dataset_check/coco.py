"""Faults in COCO annotations."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from pvt_mm.analysis.dataset_check.findings import Findings, Item, Split, find_step
from pvt_mm.utils.text import shorten

SLACK = 1.0  # pixels by which a box may exceed its image: COCO's boxes are rounded
MAX_COORDINATE = 1e6  # pixels; pycocotools corrupts memory from about 1e9 on


def list_coco(split: Split, dataset: Any, pipeline: Sequence[dict], config: Config) -> None:
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
    split.with_mask = bool((find_step(pipeline, 'LoadAnnotations') or {}).get('with_mask'))


def is_size(size: Any) -> bool:
    return all(isinstance(side, int) and side > 0 for side in size)


def check_annotation(found: Findings, split: Split, item: Item, annotation: dict) -> None:
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
    elif is_size(item.size) and (min(x, y) < -SLACK or x + w > W + SLACK or y + h > H + SLACK):
        found.add('box outside', f'{where}: the box {box} exceeds the image of {W} x {H} pixels')
    if not _is_number(area := annotation.get('area'), MAX_COORDINATE**2):
        found.add('invalid annotations', f'{where}: the area {area}, which training reads, is not a number')
    mask, fault = annotation.get('segmentation'), ''
    if mask and is_size(item.size):
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
