"""A corrected copy of COCO annotations."""

import difflib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pvt_mm.datasets.coco.boxes import Sized, are_fractions, exceeds, find_corners
from pvt_mm.datasets.coco.faults import FEW, project_category
from pvt_mm.datasets.coco.files import ImageFiles, upright_size
from pvt_mm.datasets.coco.masks import area_and_box, is_number, mask_fault
from pvt_mm.utils.errors import InputError
from pvt_mm.utils.text import shorten

ROUNDING = 2  # pixels by which a size may differ from the file's without being that of another image
Size = tuple[int, int]  # (H, W)


class Changes:
    """What was changed, counted by kind, with the first few places.

    Args:
        totals: The number of images, annotations and categories.
    """

    def __init__(self, totals: dict[str, int]) -> None:
        self.totals = totals
        self.places: dict[tuple[str, str], list[str]] = defaultdict(list)
        self.counts: Counter = Counter()

    def add(self, what: str, change: str, place: Any = '', count: int = 1) -> None:
        """Counts a change of one or several of ``what``, such as ``'annotations'``."""
        self.counts[what, change] += count
        if place != '' and len(self.places[what, change]) < 3:
            self.places[what, change].append(str(place))

    def lines(self) -> list[str]:
        lines = []
        for (what, change), count in self.counts.items():
            places = self.places[what, change]
            named = f' ({shorten(places)}{", ..." if count > len(places) > 1 else ""})' if places else ''
            lines.append(f'{count:,} of {self.totals[what]:,} {what} {change}{named}')
        return lines


def repair(
    content: dict,
    folder: Path,
    classes: Sequence[str] | None = None,
    annotated: bool = True,
    masks: bool = False,
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
        masks: Whether each object must have a mask: up to 1% without one are left out.

    Raises:
        InputError: It is not COCO's layout, ids cannot be told apart, no image is found, no object is left, it has a
            category that is not in ``classes``, or it is unclear what the boxes are.
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
    changes = Changes({name: len(content[name]) for name in ('images', 'annotations', 'categories')})
    categories, category_ids = _categories(content['categories'], content['annotations'], classes, changes)
    images, places = _images(content['images'], content['annotations'], folder, changes)
    annotations = _annotations(content['annotations'], images, places, category_ids, masks, changes)
    repaired = {**content, 'images': images, 'annotations': annotations, 'categories': categories}
    return repaired, changes.lines()


def _key(value: Any) -> str | None:
    """Returns an id as a string, the same for 3, 3.0 and '3'; None if it is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() or None if isinstance(value, (int, str)) and not isinstance(value, bool) else None


def _numbered(values: list, lowest: int) -> list:
    """Returns ids as unique integers, as they are if they can be: 1, 2, 3, ... if they must."""
    keys = [_key(value) for value in values]
    if all(key and key.isdecimal() and key.isascii() and int(key) >= lowest for key in keys):
        numbers = [int(key) for key in keys]
        if len(set(numbers)) == len(numbers):
            return numbers
    return list(range(1, len(values) + 1))


def _number_entries(entries: list[dict], lowest: int, what: str, changes: Changes) -> None:
    """Gives entries ids that are unique integers, if they have not."""
    before = [one.get('id') for one in entries]
    numbers = _numbered(before, lowest)
    if list(map(repr, before)) != list(map(repr, numbers)):
        why = 'were renumbered, since ids were missing, repeated, too low, or not integers'
        changes.add(what, why, count=len(entries))
        for one, number in zip(entries, numbers, strict=True):
            one['id'] = number


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
        place = names.setdefault(name, len(kept))
        if place == len(kept):
            kept.append({**one, 'name': name})
        else:
            changes.add('categories', 'were there before: taken as one', name)
        if places.setdefault(key, place) != place:
            first = kept[places[key]]['name']
            raise InputError(f'two categories, {first} and {name}, have the id {key}: give each an id of its own')
    if not kept and annotations:
        raise InputError('the json has no categories: add them, each with an id and a name')
    _number_entries(kept, 0, 'categories', changes)
    ids = {key: kept[place]['id'] for key, place in places.items()}
    return _ordered(kept, classes, changes), ids


def _ordered(categories: list[dict], classes: Sequence[str] | None, changes: Changes) -> list[dict]:
    """Returns the categories in the order of the classes; those that are absent are added."""
    if classes is None:
        return categories
    by_name = {one['name']: one for one in categories}
    if other := [name for name in by_name if name not in classes]:
        hint = did_you_mean(other[0], classes)
        raise InputError(
            f'the json has the category {shorten(other)}, and the classes are {shorten(classes, 10)}{hint}'
        )
    free = max((one['id'] for one in categories), default=0) + 1
    ordered = []
    for name in classes:
        if name not in by_name:
            by_name[name], free = {'id': free, 'name': name, 'supercategory': 'none'}, free + 1
            changes.add('categories', 'were added from the classes, without objects', name)
        ordered.append(by_name[name])
    if [one['id'] for one in categories] != [one['id'] for one in ordered][: len(categories)]:
        why = 'were in another order than the classes: in that order'
        changes.add('categories', why, shorten(classes, 10), len(categories))
    return ordered


def did_you_mean(name: str, classes: Sequence[str]) -> str:
    """Returns the question whether a name of another spelling is meant, to end a message, or ''."""
    by_key = {' '.join(one.split()).casefold(): one for one in classes}
    near = difflib.get_close_matches(' '.join(name.split()).casefold(), by_key, 1, 0.75)
    return f'; for {name!r}, did you mean {by_key[near[0]]!r}?' if near else ''


def _images(
    images: list[dict], annotations: list[dict], folder: Path, changes: Changes
) -> tuple[list[dict], dict[str, int]]:
    """Returns the images, and the place of each among them by the ids that annotations give."""
    files = ImageFiles(folder, [one.get('file_name') for one in images])
    kept: list[dict] = []
    places: dict[str, int] = {}
    names: dict[str, int] = {}
    turned: set[int] = set()
    given = [one.get('file_name') for one in images]
    paths = [files.find(name) if isinstance(name, str) and name else None for name in given]
    with ThreadPoolExecutor() as threads:  # network file systems are slow to answer, but answer many at once
        sizes = list(threads.map(lambda path: path and upright_size(os.path.join(files.folder, path)), paths))
    for one, name, found, actual in zip(images, given, paths, sizes, strict=True):
        key = _key(one.get('id'))
        if key is None or found is None:
            why = f'are not in {files.folder}: left out' if key else 'had no id: left out'
            changes.add('images', why, name)
            continue
        if found != name:
            changes.add('images', 'had another file name than the file: corrected', f'{name} is {found}')
        stated = _stated_size(one)
        if not _is_size(one, stated, actual, changes):
            continue
        place = names.setdefault(found, len(kept))
        if place == len(kept):
            kept.append({**one, 'file_name': found, 'height': actual[0], 'width': actual[1]})
        else:
            changes.add('images', 'were listed before: taken as one', found)
        if stated == actual[::-1] != actual:
            turned.add(place)
        if places.setdefault(key, place) != place:
            first = kept[places[key]]['file_name']
            raise InputError(f'two images, {first} and {found}, have the id {key}: give each an id of its own')
    if not kept:
        why = '; '.join(line for line in changes.lines() if ' images ' in line)
        raise InputError(f'no image of the json is left: {why}' if images else 'the json has no images')
    _check_turned(_sized(annotations, kept, {key: place for key, place in places.items() if place in turned}))
    if not all(isinstance(one['id'], str) for one in kept) or len({one['id'] for one in kept}) < len(kept):
        _number_entries(kept, 0, 'images', changes)
    return kept, places


def _sized(annotations: list[dict], images: list[dict], places: dict[str, int]) -> Iterator[Sized]:
    """Yields the boxes of images with the sizes of the files."""
    for one in annotations:
        place, box = places.get(_key(one.get('image_id'))), _box(one)
        if place is not None and box is not None:
            yield box, one, (images[place]['height'], images[place]['width'])


def _check_turned(boxes: Iterator[Sized]) -> None:
    """Raises an InputError if boxes are not of their images turned upright."""
    boxes = list(boxes)
    outside = [(one, size) for box, one, size in boxes if exceeds(box, size)]
    if outside:
        one, (H, W) = outside[0]
        before = sum(exceeds(box, size[::-1]) for box, _, size in boxes)
        raise InputError(
            f'{len(outside)} of {len(boxes)} boxes exceed their images turned upright by EXIF orientation, such as '
            f'{one["bbox"]} of annotation {one.get("id")} one of {W} x {H}, and {before} exceed them before: '
            'remove the EXIF orientation from these images (exiftool -Orientation= FOLDER), or export the boxes again'
        )


def _stated_size(image: dict) -> Size | None:
    sides = [_number(image.get(side)) for side in ('height', 'width')]
    return None if any(side is None or side <= 0 for side in sides) else (round(sides[0]), round(sides[1]))


def _is_size(image: dict, stated: Size | None, actual: Size | None, changes: Changes) -> bool:
    """Returns whether an image can have the size of its file."""
    name = image['file_name']
    if actual is None:
        changes.add('images', 'cannot be read: left out', name)
        return False
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
        return False
    return True


def _number(value: Any) -> float | None:
    """Returns a finite number, also one written as a string, or None."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return value if is_number(value) else None


def _annotations(
    annotations: list[dict],
    images: list[dict],
    places: dict[str, int],
    categories: dict[str, int],
    masks: bool,
    changes: Changes,
) -> list[dict]:
    kept: list[dict] = []
    seen: set[tuple] = set()
    twice = {place for place, count in Counter(places.values()).items() if count > 1}
    corners = _are_corners(list(_sized(annotations, images, places)))
    for one in annotations:
        name = one.get('id')
        place, category = places.get(_key(one.get('image_id'))), categories.get(_key(one.get('category_id')))
        if place is None:
            changes.add('annotations', 'are of an image that is not listed or was left out: left out', name)
            continue
        if category is None:
            changes.add('annotations', 'are of a category that is not listed: left out', name)
            continue
        image = images[place]
        fixed = {**one, 'image_id': image['id'], 'category_id': category}
        for key in ('image_id', 'category_id'):
            if type(one.get(key)) is not type(fixed[key]) and one.get(key) is not None:
                changes.add('annotations', f'had an {key} of another type than the id: corrected', name)
        size = image['height'], image['width']
        _fix_mask(fixed, size, changes)
        if not _fix_box(fixed, size, corners, changes):
            continue
        if place in twice:
            key = (place, category, *fixed['bbox'])
            if key in seen:
                changes.add('annotations', 'are of an image that was listed twice, with the same box: left out', name)
                continue
            seen.add(key)
        _fix_area(fixed, size, changes)
        _fix_crowd(fixed, changes)
        kept.append(fixed)
    if kept and all(one['iscrowd'] for one in kept):
        raise InputError(f'all {len(kept)} annotations are crowds (iscrowd or ignore), which training ignores')
    if masks:
        kept = _with_masks(kept, images, changes)
    if annotations and not kept:
        raise InputError(f'no object of the json is left: {"; ".join(changes.lines()[-3:])}')
    _number_entries(kept, 1, 'annotations', changes)
    return kept


def _with_masks(annotations: list[dict], images: list[dict], changes: Changes) -> list[dict]:
    """Returns annotations without the few that have no mask."""
    bare = [one for one in annotations if not one.get('segmentation')]
    if len(bare) == len(annotations):  # it is data of boxes
        return annotations
    if len(bare) > FEW * len(annotations):
        name = next(image['file_name'] for image in images if image['id'] == bare[0]['image_id'])
        raise InputError(
            f'{len(bare)} of {len(annotations)} objects have no valid mask, such as annotation {bare[0].get("id")} of '
            f'{name}: draw them, or use a detector without masks'
        )
    for one in bare:
        changes.add('annotations', 'have no valid mask, which the model learns: left out', one.get('id'))
    return [one for one in annotations if one.get('segmentation')]


def _are_corners(boxes: list[Sized]) -> bool:
    """Returns whether boxes are [x1, y1, x2, y2]; raises an InputError if it is unclear, or if they are fractions."""
    corners = find_corners(boxes)
    if are_fractions(boxes):
        corners = f'all {len(boxes)} boxes are of numbers from 0 to 1: they are fractions of the image'
    if isinstance(corners, str):
        raise InputError(f'{corners}: export bbox as [x, y, width, height] in pixels')
    return corners


def _box(annotation: dict) -> list[float] | None:
    """Returns the four numbers of a box, also of one written as strings, or None."""
    box = annotation.get('bbox')
    if not isinstance(box, list) or len(box) != 4:
        return None
    numbers = [_number(value) for value in box]
    return None if None in numbers else numbers


def _fix_mask(one: dict, size: Size, changes: Changes) -> None:
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


def _fix_box(one: dict, size: Size, corners: bool, changes: Changes) -> bool:
    """Writes a box that training accepts; returns False if there is none."""
    H, W = size
    name, given, box = one.get('id'), one.get('bbox'), _box(one)
    if box is None or (not any(box) and one.get('segmentation')):
        if not one.get('segmentation'):
            changes.add('annotations', 'had neither a box nor a mask: left out', name)
            return False
        box = area_and_box(one['segmentation'], size)[1]
        changes.add('annotations', 'had no valid bbox: that of the mask', name)
    elif box != given:
        changes.add('annotations', 'had strings in bbox: read as numbers', name)
    if corners and _box(one) and any(_box(one)):
        box = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
        changes.add('annotations', 'had [x1, y1, x2, y2] for a bbox: written as [x, y, width, height]', name)
    x, y, w, h = box
    if min(w, h) < 1 or min(x + w, W) <= max(x, 0) or min(y + h, H) <= max(y, 0):
        changes.add('annotations', 'had a box of less than a pixel, or outside of the image: left out', name)
        return False
    one['bbox'] = box
    return True


def _fix_area(one: dict, size: Size, changes: Changes) -> None:
    area = _number(one.get('area'))
    if area is None or area <= 0:
        mask = one.get('segmentation')
        area = (area_and_box(mask, size)[0] if mask else 0) or one['bbox'][2] * one['bbox'][3]
        changes.add('annotations', 'had no valid area: that of the mask or box', one.get('id'))
    elif area != one['area']:
        changes.add('annotations', 'had a string for area: read as a number', one.get('id'))
    one['area'] = area


def _is_true(value: Any) -> bool:
    return value in (1, True, '1', 'true', 'True')


def _fix_crowd(one: dict, changes: Changes) -> None:
    given, ignore = one.get('iscrowd'), one.pop('ignore', None)
    if _is_true(ignore) and not _is_true(given):
        one['iscrowd'] = 1
        changes.add('annotations', 'had ignore, which only training knows: iscrowd 1', one.get('id'))
    elif given is None or isinstance(given, str) or given not in (0, 1):
        one['iscrowd'] = int(_is_true(given))
        what = 'no iscrowd' if given is None else 'an iscrowd that is neither 0 nor 1'
        changes.add('annotations', f'had {what}: {one["iscrowd"]}', one.get('id'))
