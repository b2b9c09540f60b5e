"""A corrected copy of COCO annotations."""

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pvt_mm.datasets.coco.faults import SLACK, project_category, same_name
from pvt_mm.datasets.coco.files import ImageFiles, upright_size
from pvt_mm.datasets.coco.masks import is_number, mask_area, mask_box, mask_fault
from pvt_mm.utils.errors import InputError
from pvt_mm.utils.text import shorten

ROUNDING = 2  # pixels by which a size may differ from the file's without being that of another image
CORNERS = 0.1  # the share of boxes that exceed their image from which on all are taken for [x1, y1, x2, y2]


class Changes:
    """What was changed, counted by kind, with the first few places."""

    def __init__(self) -> None:
        self.places: dict[tuple[str, str], list[str]] = defaultdict(list)
        self.counts: Counter = Counter()

    def add(self, what: str, change: str, place: Any = '', count: int = 1) -> None:
        """Counts a change of one or several of ``what``, such as ``'annotations'``."""
        self.counts[what, change] += count
        if place != '' and len(self.places[what, change]) < 3:
            self.places[what, change].append(str(place))

    def lines(self, totals: dict[str, int]) -> list[str]:
        lines = []
        for (what, change), count in self.counts.items():
            places = self.places[what, change]
            named = f' ({shorten(places)}{", ..." if count > len(places) > 1 else ""})' if places else ''
            lines.append(f'{count:,} of {totals[what]:,} {what} {change}{named}')
        return lines


def repair(
    content: dict, folder: Path, classes: Sequence[str] | None = None, annotated: bool = True
) -> tuple[dict, list[str]]:
    """Returns a copy of COCO-like annotations that is valid, and a line for each kind of change.

    Ids become integers, names of files those below the folder, sizes those of the files; what is missing is filled in;
    what cannot be an object is left out. Valid annotations are returned as they are, without a line.

    Args:
        content: The parsed json, which is not changed.
        folder: The folder that its file names are relative to.
        classes: The names of the categories in the order to write, such as those of the training data; by default the
            json's own. MMDetection numbers classes in the order of the json.
        annotated: Whether there must be objects: images to predict on need none.

    Raises:
        InputError: It is not COCO's layout, ids cannot be told apart, no image is found, no object is left, or it has
            a category that is not in ``classes``.
    """
    content = content if annotated else {'annotations': [], 'categories': [], **content}
    for name in ('images', 'annotations', 'categories'):
        entries = content.get(name)
        if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
            raise InputError(f'the json is not of COCO: it has no list of {name}; export the annotations as COCO json')
    if not os.path.isdir(folder):
        raise InputError(f'the folder of the images, {folder}, does not exist')
    if annotated and not content['annotations']:
        raise InputError(f'the json has no objects on its {len(content["images"])} images: annotate some')
    changes = Changes()
    categories, category_ids = _categories(content['categories'], content['annotations'], classes, changes)
    images, image_ids = _images(content['images'], ImageFiles(folder), changes)
    annotations = _annotations(content['annotations'], images, image_ids, category_ids, changes)
    totals = {name: len(content[name]) for name in ('images', 'annotations', 'categories')}
    repaired = {**content, 'images': images, 'annotations': annotations, 'categories': categories}
    return repaired, changes.lines(totals)


def _key(value: Any) -> str | None:
    """Returns an id as a string, the same for 3, 3.0 and '3'; None if it is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() or None if isinstance(value, (int, str)) and not isinstance(value, bool) else None


def _numbered(values: list, lowest: int) -> tuple[list[int], bool]:
    """Returns ids as unique integers, and whether they differ from the given ones: 1, 2, 3, ... if they must."""
    if all(type(value) is int and value >= lowest for value in values) and len(set(values)) == len(values):
        return values, False
    keys = [_key(value) for value in values]
    if all(key and key.isdecimal() and key.isascii() and int(key) >= lowest for key in keys):
        numbers = [int(key) for key in keys]
        if len(set(numbers)) == len(numbers):
            return numbers, True
    return list(range(1, len(values) + 1)), True


def _categories(
    categories: list[dict], annotations: list[dict], classes: Sequence[str] | None, changes: Changes
) -> tuple[list[dict], dict[str, int]]:
    """Returns the categories, and their ids by the ids that annotations give."""
    used = {value for one in annotations if isinstance(value := one.get('category_id'), (int, str, float))}
    project = project_category(categories, used)
    if project:
        changes.add('categories', 'named the project and had no objects: left out', project['name'])
    kept: list[dict] = []
    places: dict[str, int] = {}  # in kept, by the id that annotations give
    names: dict[str, int] = {}
    for one in categories:
        key, name = _key(one.get('id')), one.get('name')
        if one is project:
            continue
        if isinstance(name, (int, float)) and not isinstance(name, bool):
            changes.add('categories', 'had a number for a name: taken as text', name)
            name = str(name)
        if key is None or not isinstance(name, str) or not name.strip():
            raise InputError(f'a category has the id {one.get("id")!r} and the name {name!r}: give it an id and a name')
        stripped = ' '.join(name.split())
        if stripped != name:
            changes.add('categories', 'had spaces around the name: removed', repr(name))
        place = names.setdefault(same_name(name), len(kept))
        if place == len(kept):
            kept.append({**one, 'name': stripped})
        else:
            changes.add('categories', 'had the name of another but for case and spaces: taken as one', stripped)
        if places.setdefault(key, place) != place:
            first = kept[places[key]]['name']
            raise InputError(f'two categories, {first} and {stripped}, have the id {key}: give each an id of its own')
    if not kept and annotations:
        raise InputError('the json has no categories: add them, each with an id and a name')
    numbers, changed = _numbered([one['id'] for one in kept], lowest=0)
    if changed:
        changes.add(
            'categories', 'had an id that is not a unique integer: numbered anew', shorten(o['id'] for o in kept)
        )
    for one, number in zip(kept, numbers, strict=True):
        one['id'] = number
    ids = {key: kept[place]['id'] for key, place in places.items()}
    return _ordered(kept, classes, changes), ids


def _ordered(categories: list[dict], classes: Sequence[str] | None, changes: Changes) -> list[dict]:
    """Returns the categories in the order of the classes, with their spelling; those that are absent are added."""
    if classes is None:
        return categories
    by_name = {same_name(one['name']): one for one in categories}
    other = [one['name'] for one in categories if same_name(one['name']) not in {*map(same_name, classes)}]
    if other:
        raise InputError(f'the json has the category {shorten(other)}, and the classes are {shorten(classes, 10)}')
    free = max((one['id'] for one in categories), default=0) + 1
    ordered = []
    for name in classes:
        one = by_name.get(same_name(name))
        if one is None:
            one, free = {'id': free, 'name': name, 'supercategory': 'none'}, free + 1
            changes.add('categories', 'were added from the classes, without objects', name)
        elif one['name'] != name:
            changes.add('categories', 'were spelled differently from the classes: as those', one['name'])
        ordered.append({**one, 'name': name})
    if [one['id'] for one in categories] != [one['id'] for one in ordered][: len(categories)]:
        why = 'were in another order than the classes: in that order'
        changes.add('categories', why, shorten(classes, 10), len(categories))
    return ordered


def _images(images: list[dict], files: ImageFiles, changes: Changes) -> tuple[list[dict], dict[str, int]]:
    """Returns the images, and the place of each among them by the ids that annotations give."""
    kept: list[dict] = []
    places: dict[str, int] = {}
    names: dict[str, int] = {}
    missing = 0
    for one in images:
        key, name = _key(one.get('id')), one.get('file_name')
        found = files.find(name) if isinstance(name, str) and name else None
        if key is None or found is None:
            missing += 1
            why = f'are not in {files.folder}: left out' if key else 'had no id: left out'
            changes.add('images', why, name)
            continue
        if found != name:
            changes.add('images', 'had another file name than the file: corrected', f'{name} is {found}')
        size = _size(one, upright_size(os.path.join(files.folder, found)), changes)
        if size is None:
            continue
        place = names.setdefault(found, len(kept))
        if place == len(kept):
            kept.append({**one, 'file_name': found, 'height': size[0], 'width': size[1]})
        else:
            changes.add('images', 'were listed before: taken as one', found)
        if places.setdefault(key, place) != place:
            first = kept[places[key]]['file_name']
            raise InputError(f'two images, {first} and {found}, have the id {key}: give each an id of its own')
    if not kept:
        name = next((one.get('file_name') for one in images), None)
        raise InputError(
            f'the json has no images: it lists {len(images)}'
            if not missing
            else f'none of the {len(images)} images of the json is in {files.folder}, such as {name}: name their folder'
        )
    numbers, changed = _numbered([one['id'] for one in kept], lowest=0)
    if changed:
        changes.add('images', 'were given new ids, since not all were unique integers', kept[0]['id'], len(kept))
    for one, number in zip(kept, numbers, strict=True):
        one['id'] = number
    return kept, places


def _size(image: dict, actual: tuple[int, int] | None, changes: Changes) -> tuple[int, int] | None:
    """Returns the size (H, W) of an image, that of its file if it can be read; None if the image is left out."""
    name = image['file_name']
    sides = [_number(image.get(side)) for side in ('height', 'width')]
    stated = None if any(side is None or side <= 0 for side in sides) else (round(sides[0]), round(sides[1]))
    if actual is None:
        changes.add('images', 'cannot be read: left out', name)
        return None
    if stated == actual:
        if not all(type(image[side]) is int for side in ('height', 'width')):
            changes.add('images', 'had a width or height that is not an integer: corrected', name)
    elif stated is None:
        changes.add('images', 'had no width and height: those of the file', name)
    elif stated == actual[::-1]:
        changes.add('images', 'had the width and height before their EXIF rotation: exchanged', name)
    elif max(abs(stated[0] - actual[0]), abs(stated[1] - actual[1])) <= ROUNDING:
        changes.add('images', 'had a width or height that differs by a pixel or two: those of the file', name)
    else:
        changes.add('images', 'have another size than the json says, so that its boxes do not fit: left out', name)
        return None
    return actual


def _number(value: Any) -> float | None:
    """Returns a finite number, also one written as a string, or None."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return value if is_number(value) else None


def _annotations(
    annotations: list[dict], images: list[dict], places: dict[str, int], categories: dict[str, int], changes: Changes
) -> list[dict]:
    kept = []
    only = next(iter(categories.values())) if len(set(categories.values())) == 1 else None
    corners = _are_corners(annotations, images, places)
    ignored = all(_is_true(one.get('iscrowd')) or _is_true(one.get('ignore')) for one in annotations)
    for one in annotations:
        name = one.get('id')
        place, category = places.get(_key(one.get('image_id'))), categories.get(_key(one.get('category_id')))
        if place is None:
            changes.add('annotations', 'are of an image that is not listed or was left out: left out', name)
            continue
        if category is None and only is not None and one.get('category_id') is None:
            changes.add('annotations', 'had no category_id: that of the only category', name)
            category = only
        if category is None:
            changes.add('annotations', 'are of a category that is not listed: left out', name)
            continue
        if type(one.get('image_id')) is not int:
            changes.add('annotations', 'had an image_id that is not an integer: corrected', name)
        if type(one.get('category_id')) is not int:
            changes.add('annotations', 'had a category_id that is not an integer: corrected', name)
        image = images[place]
        fixed = {**one, 'image_id': image['id'], 'category_id': category}
        size = image['height'], image['width']
        _fix_mask(fixed, size, changes)
        if not _fix_box(fixed, size, corners, changes):
            continue
        _fix_area(fixed, changes)
        _fix_crowd(fixed, ignored, changes)
        kept.append(fixed)
    if annotations and not kept:
        reasons = changes.lines(defaultdict(lambda: len(annotations)))
        raise InputError(f'no object of the json is left: {"; ".join(reasons[-3:])}')
    numbers, changed = _numbered([one.get('id') for one in kept], lowest=1)
    if changed:
        why = 'were numbered anew, since ids were missing, repeated, below 1, or not integers'
        changes.add('annotations', why, count=len(kept))
    for one, number in zip(kept, numbers, strict=True):
        one['id'] = number
    return kept


def _box(annotation: dict) -> list[float] | None:
    """Returns the four numbers of a box, also of one written as strings, or None."""
    box = annotation.get('bbox')
    if not isinstance(box, list) or len(box) != 4:
        return None
    numbers = [_number(value) for value in box]
    return None if None in numbers else numbers


def _are_corners(annotations: list[dict], images: list[dict], places: dict[str, int]) -> bool:
    """Returns whether boxes are [x1, y1, x2, y2]: all fit their images as such, and many do not as [x, y, w, h]."""
    outside = total = 0
    for one in annotations:
        place, box = places.get(_key(one.get('image_id'))), _box(one)
        if place is None or box is None:
            continue
        right, bottom = images[place]['width'] + SLACK, images[place]['height'] + SLACK
        x, y, w, h = box
        if not (-SLACK <= x < w <= right and -SLACK <= y < h <= bottom):
            return False
        total += 1
        outside += x + w > right or y + h > bottom
    return outside > CORNERS * total


def _fix_mask(one: dict, size: tuple[int, int], changes: Changes) -> None:
    mask = one.get('segmentation')
    if not mask:
        return
    if isinstance(mask, list) and all(map(is_number, mask)):
        mask = [mask]
    fixed = [part for part in mask if not mask_fault([part], size)] if isinstance(mask, list) else mask
    if not isinstance(mask, list) and mask_fault(mask, size):
        fixed = []
    if fixed != one['segmentation']:
        how = 'its valid polygons were kept' if fixed else 'removed'
        changes.add('annotations', f'had a mask that does not decode to the image: {how}', one.get('id'))
        one['segmentation'] = fixed


def _fix_box(one: dict, size: tuple[int, int], corners: bool, changes: Changes) -> bool:
    """Writes a box that training accepts; returns False if there is none."""
    H, W = size
    name, given, box = one.get('id'), one.get('bbox'), _box(one)
    if box is None:
        box = mask_box(one['segmentation'], size) if one.get('segmentation') else None
        if box is None:
            changes.add('annotations', 'had neither a box nor a mask: left out', name)
            return False
        changes.add('annotations', 'had no valid bbox: that of the mask', name)
    elif box != given:
        changes.add('annotations', 'had strings in bbox: read as numbers', name)
    if corners and _box(one):
        box = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
        changes.add('annotations', 'had [x1, y1, x2, y2] for a bbox: written as [x, y, width, height]', name)
    x, y, w, h = box
    if min(x, y) < -SLACK or x + w > W + SLACK or y + h > H + SLACK:
        left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, W), min(y + h, H)
        clipped = [left, top, right - left, bottom - top]
        if min(clipped[2:]) >= 1:
            changes.add('annotations', 'had a box that exceeds the image: clipped', name)
        box = clipped if min(w, h) >= 1 else box
    inside = min(box[0] + box[2], W) > max(box[0], 0) and min(box[1] + box[3], H) > max(box[1], 0)
    if min(box[2:]) < 1 or not inside:
        changes.add('annotations', 'had a box of less than a pixel, or outside of the image: left out', name)
        return False
    one['bbox'] = box
    return True


def _fix_area(one: dict, changes: Changes) -> None:
    area = _number(one.get('area'))
    if area is None or area <= 0:
        mask = one.get('segmentation')
        area = (mask_area(mask) if mask else 0) or one['bbox'][2] * one['bbox'][3]
        changes.add('annotations', 'had no valid area: that of the mask or box', one.get('id'))
    elif area != one['area']:
        changes.add('annotations', 'had a string for area: read as a number', one.get('id'))
    one['area'] = area


def _is_true(value: Any) -> bool:
    return value in (1, True, '1', 'true', 'True')


def _fix_crowd(one: dict, ignored: bool, changes: Changes) -> None:
    given, ignore = one.get('iscrowd'), one.pop('ignore', None)
    crowd = int(_is_true(given))
    if ignored:
        crowd = 0
        changes.add('annotations', 'had iscrowd 1 or ignore, as all had, so that training would ignore them: 0')
    elif given is None:
        changes.add('annotations', 'had no iscrowd: 0')
    elif not isinstance(given, (int, float)) or given not in (0, 1):
        changes.add('annotations', f'had an iscrowd that is neither 0 nor 1: {crowd}', one.get('id'))
    if _is_true(ignore) and not ignored:
        crowd = 1
        changes.add('annotations', 'had ignore, which only training knows: iscrowd 1', one.get('id'))
    one['iscrowd'] = crowd if given is None or crowd != given or isinstance(given, str) else given
