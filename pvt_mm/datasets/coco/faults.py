"""Faults in COCO annotations."""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from pvt_mm.datasets.coco.boxes import SLACK, Sized, are_fractions, exceeds, find_corners
from pvt_mm.datasets.coco.files import ImageFiles, upright_size
from pvt_mm.datasets.coco.masks import MAX_COORDINATE, OUTSIDE, SHORT, is_number, mask_fault
from pvt_mm.datasets.image_io import Loader

FEW = 0.01  # the share of annotations that training may drop: COCO has two of 860,001 without an area
MOST = 0.5  # the share from which on data is another one than what is meant


class Kind(NamedTuple):
    """What to do about faults of a kind."""

    fix: str
    tolerance: float = 0.0  # the share of the annotations, or images, that may have one in training
    is_repaired: bool = True  # by repair
    is_evaluated: bool = False  # whether only evaluation is wrong

    @property
    def is_warning(self) -> bool:
        """Whether many may have one, or all that are trained on."""
        return self.tolerance >= MOST or self.is_evaluated


class Fault(NamedTuple):
    """A fault of a kind, with a line that says where and what it is."""

    kind: str  # of KINDS
    text: str
    count: int = 1  # of the annotations, images or categories that it is about
    fix: str = ''  # what to do, if that of the kind is not enough


KINDS = {
    'invalid annotations': Kind('export the annotations again, as COCO json', is_repaired=False),
    'invalid category': Kind('give each category an id, an integer, and a name, a string'),
    'repeated category': Kind('give its objects the id of the other, and remove it'),
    'project as category': Kind('remove it from the categories and from metainfo.classes'),
    'invalid image': Kind('give each image a file_name and an id, all integers or all strings'),
    'repeated image': Kind('list each image once'),
    'missing image': Kind('correct file_name, or data_prefix', FEW),
    'wrong size': Kind('set width and height to those of the file'),
    'unlisted image': Kind('give the image_id of one of the images', FEW),
    'invalid id': Kind('number the annotations 1, 2, 3, ... through all images'),
    'id below 1': Kind('number the annotations 1, 2, 3, ... through all images', is_evaluated=True),
    'unknown category': Kind('give the id of one of the categories, as an integer'),
    'unlisted category': Kind('list it among the categories', MOST),
    'invalid box': Kind('write bbox as [x, y, width, height], four numbers in pixels'),
    'empty box': Kind('remove these annotations', FEW),
    'box outside': Kind('write bbox as [x, y, width, height] in pixels of the image', FEW),
    'box beyond the border': Kind('clip it, if what lies outside of the image is not meant', 1.0, is_repaired=False),
    'corners': Kind('write bbox as [x, y, width, height]'),
    'other boxes': Kind('write bbox as [x, y, width, height] in pixels', is_repaired=False),
    'invalid area': Kind('set area to that of the mask or box in pixels'),
    'zero area': Kind('set area to that of the mask or box in pixels', FEW),
    'invalid iscrowd': Kind('set iscrowd to 0, or to 1 for a crowd'),
    'no iscrowd': Kind('set iscrowd to 0, or to 1 for a crowd', is_evaluated=True),
    'only crowds': Kind('set iscrowd to 0', is_repaired=False),
    'no objects': Kind('annotate some objects', is_repaired=False),
    'no images': Kind('list images', is_repaired=False),
    'bad mask': Kind('give each object a segmentation, or train a detector without masks', is_repaired=False),
    'empty mask': Kind('give each object a segmentation, or train a detector without masks', FEW, is_repaired=False),
    'wrong classes': Kind('set metainfo.classes'),
    'dropped objects': Kind('correct these annotations', FEW),
    'invalid pipeline': Kind('correct the pipeline, or the annotations', is_repaired=False),
}


def find_faults(
    content: dict,
    folder: str | os.PathLike | None = None,
    *,
    classes: tuple[str, ...] | None = None,
    masks: bool = False,
    annotated: bool = True,
    sampled: int | None = None,
    load: Loader | None = None,
) -> Iterator[Fault]:
    """Yields the faults of a COCO json, as parsed.

    Args:
        content: The object in the json; it is not changed.
        folder: The folder that its file names are relative to; None leaves the image files unchecked.
        classes: The classes that are trained on; None: all categories.
        masks: Whether each object must have a mask. Masks that are there are checked anyway.
        annotated: Whether there must be objects: predicting does without.
        sampled: Of how many images, evenly spaced, the size is read from the file; None: of all.
        load: The transform that loads images, by default turned upright by their EXIF orientation.
    """
    lists = {}
    for name in ('images', 'annotations', 'categories'):
        lists[name] = content.get(name, None if annotated or name == 'images' else [])
        if not isinstance(lists[name], list):
            yield Fault('invalid annotations', f'it has no list of {name}')
            return
        odd = next((one for one in lists[name] if not isinstance(one, dict)), None)
        if odd is not None:
            yield Fault('invalid annotations', f'one of its {name} is {odd!r:.80}, not an object')
            return
    categories = yield from _category_faults(lists['categories'], lists['annotations'], classes)
    images = yield from _image_faults(lists['images'], folder, sampled, load)
    if annotated or lists['annotations']:
        yield from _annotation_faults(lists['annotations'], images, categories, masks)
    if not lists['images']:
        yield Fault('no images', 'it lists no images')
    elif annotated:
        objects = [one for one in lists['annotations'] if not (one.get('iscrowd') or one.get('ignore'))]
        if not lists['annotations']:
            yield Fault('no objects', f'none of its {len(lists["images"])} images has an object')
        elif not objects:
            text = f'all {len(lists["annotations"])} annotations are crowds (iscrowd or ignore), which training ignores'
            yield Fault('only crowds', text, len(lists['annotations']))


def stops_training(kind: str, count: int, content: dict, split: str = 'train') -> bool:
    """Returns whether this many faults of a kind are more than a split may have."""
    if split != 'train' and (KINDS[kind].is_evaluated or kind in ('missing image', 'empty mask')):
        return True  # training skips a few
    if KINDS[kind].is_evaluated:
        return False
    entries = content.get('images' if kind == 'missing image' else 'annotations') or ()
    return count > KINDS[kind].tolerance * len(entries)


def turned_hint(size: tuple[int, int], actual: tuple[int, int]) -> str:
    """Returns what to do if a size (H, W) in the json is that of a file before its EXIF rotation, else ''."""
    if size != actual[::-1]:
        return ''
    return ': exchange the two if the boxes fit the image so, else remove the EXIF orientation from the file'


def project_category(categories: list[dict], used: set) -> Any:
    """Returns the category that Roboflow adds, with the project's name: the parent of others, of no object; or None."""
    parents = {one.get('supercategory') for one in categories if isinstance(one.get('supercategory'), str)}
    for one in categories:
        top = one.get('supercategory') in (None, '', 'none')
        if top and isinstance(one.get('name'), str) and one['name'] in parents and _hashable(one.get('id')) not in used:
            return one
    return None


def same_name(name: str) -> str:
    """Returns what is the same for names that differ in case or spaces only, which may be a mistake."""
    return ' '.join(name.split()).casefold()


def _hashable(value: Any) -> Any:
    return value if isinstance(value, (int, str, float)) else repr(value)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _category_faults(categories: list[dict], annotations: list[dict], classes: tuple | None) -> Iterator[Fault]:
    """Yields faults, and returns the ids."""
    project = project_category(categories, {_hashable(one.get('category_id')) for one in annotations})
    if project and (classes is None or project['name'] in classes):
        text = f'the category {project["name"]} is the parent of others and has no objects: it names the project'
        yield Fault('project as category', text)
    ids: set = set()
    names: set[str] = set()
    for one in categories:
        key, name = one.get('id'), one.get('name')
        if not _is_id(key) or not isinstance(name, str) or not name.strip():
            yield Fault('invalid category', f'a category has the id {key!r:.80} and the name {name!r:.80}')
            continue
        if key in ids:
            yield Fault('repeated category', f'two categories have the id {key}, the second is {name}')
        ids.add(key)
        if one is project:
            continue
        if name in names:
            yield Fault('repeated category', f'the category {name!r} is there twice')
        names.add(name)
    return ids


def _image_faults(
    images: list[dict], folder: str | os.PathLike | None, sampled: int | None, load: Loader | None
) -> Iterator[Fault]:
    """Yields faults, and returns the name and the size (H, W), or None, of each image by its id."""
    local = folder is not None and os.path.isdir(folder)
    files = ImageFiles(folder, [one.get('file_name') for one in images]) if local else None
    id_type = str if all(isinstance(one.get('id'), str) for one in images) else int
    step = 1 if sampled is None else max(1, -(-len(images) // max(1, sampled)))
    found: dict = {}
    seen: set[str] = set()
    for i, one in enumerate(images):
        key, name = one.get('id'), one.get('file_name')
        if not isinstance(name, str) or not name:
            yield Fault('invalid image', f'image {key!r:.80} has the file_name {name!r:.80}')
            found.setdefault(_hashable(key), (f'image {key!r:.80}', None))
            continue
        if type(key) is not id_type:
            yield Fault('invalid image', f'{name} has the id {key!r:.80}, which is not an integer')
        elif key in found:
            yield Fault('repeated image', f'{name} has the id {key}, which {found[key][0]} has too')
        if name in seen:
            yield Fault('repeated image', f'two images have the file_name {name}')
        seen.add(name)
        H, W = size = one.get('height'), one.get('width')
        if valid := _is_id(H) and _is_id(W) and H > 0 and W > 0:
            found.setdefault(_hashable(key), (name, size))
        else:
            yield Fault('wrong size', f'{name}: its width is {W!r:.80} and its height {H!r:.80}')
            found.setdefault(_hashable(key), (name, None))
        if not files:
            continue
        if not files.exists(name):
            other = files.find(name)
            hint = f'; it has {other}' if other else ''
            yield Fault('missing image', f'{name} is not in {folder}{hint}')
        elif valid and sampled != 0 and i % step == 0:
            actual = upright_size(os.path.join(folder, name), load)
            if actual and actual != size:
                text = f'{name} has {actual[1]} x {actual[0]} pixels, the json says {W} x {H}'
                yield Fault('wrong size', text + turned_hint(size, actual))
    return found


def _annotation_faults(annotations: list[dict], images: dict, categories: set, masks: bool) -> Iterator[Fault]:
    limits = {key: (size[1] + SLACK, size[0] + SLACK) for key, (_, size) in images.items() if size}
    other_boxes = None  # whether all boxes are written in another way
    ids = Counter(_hashable(one.get('id')) for one in annotations)
    unique = len(ids) == len(annotations)
    for one in annotations:
        try:  # what is valid, fast
            x, y, w, h = one['bbox']
            right, bottom = limits[one['image_id']]
            valid = (
                type(one['id']) is int
                and one['id'] > 0
                and type(one['category_id']) is int
                and type(one['image_id']) in (int, str)
                and one['category_id'] in categories
                and one['iscrowd'] in (0, 1)
                and 0 < one['area'] <= MAX_COORDINATE**2
                and w >= 1
                and h >= 1
                and x >= -SLACK
                and y >= -SLACK
                and x + w <= right
                and y + h <= bottom
                and bool not in (type(x), type(y), type(w), type(h))
            )
        except (KeyError, TypeError, ValueError):
            valid = False
        where = images.get(_hashable(one.get('image_id')))
        if not valid or not unique:
            if other_boxes is None:
                other_boxes = yield from _layout_faults(sized_boxes(annotations, images))
            yield from _faults_of(one, where, categories, ids, other_boxes)
        mask = one.get('segmentation')
        fault = mask_fault(mask, where[1]) if mask and where and where[1] else ''
        if fault or (masks and not mask):
            kind = 'empty mask' if fault in (SHORT, OUTSIDE) else 'bad mask'
            yield Fault(kind, f'{_place(one, where)}: {fault or "there is no mask"}')


def sized_boxes(annotations: list[dict], images: dict) -> Iterator[Sized]:
    """Yields the boxes that are four numbers, with their annotations and the sizes of their images."""
    for one in annotations:
        box, (_, size) = one.get('bbox'), images.get(_hashable(one.get('image_id')), (None, None))
        if size and isinstance(box, list) and len(box) == 4 and all(map(is_number, box)):
            yield box, one, size


def _layout_faults(boxes: Iterator[Sized]) -> Iterator[Fault]:
    """Yields how all boxes are written, if it is not [x, y, width, height] in pixels; returns whether it is not."""
    boxes = list(boxes)
    if are_fractions(boxes):
        text = f'all {len(boxes)} boxes are of numbers from 0 to 1: they are fractions of the image'
        yield Fault('other boxes', text, len(boxes))
        return True
    if not any(exceeds(box, size) for box, _, size in boxes):
        return False
    corners = find_corners(boxes)
    if isinstance(corners, str):
        yield Fault('other boxes', corners, len(boxes))
    elif corners:
        yield Fault('corners', f'all {len(boxes)} boxes are [x1, y1, x2, y2]', len(boxes))
    return bool(corners)


def _place(annotation: dict, image: tuple | None) -> str:
    name = f'{image[0]}, ' if image else ''
    return f'{name}annotation {annotation.get("id")!r:.80}'


def _faults_of(one: dict, image: tuple | None, categories: set, ids: Counter, other_boxes: bool) -> Iterator[Fault]:
    """Yields the faults of an annotation of an image, its name and size, or None."""
    place = _place(one, image)
    absent = [name for name in ('id', 'image_id', 'category_id', 'bbox', 'area', 'iscrowd') if one.get(name) is None]
    key = one.get('id')
    if not _is_id(key):
        yield Fault('invalid id', f'{place}: its id is {key!r:.80}, not an integer')
    elif key < 1:
        text = f"{place}: its id is below 1, and COCO's evaluation takes a match with the id 0 for none"
        yield Fault('id below 1', text)
    if _is_id(key) and ids[key] > 1:
        yield Fault('invalid id', f'{place}: {ids[key]} annotations have this id')
    listed = one.get('image_id')
    if type(listed) not in (int, str) or image is None:
        why = 'it has no image_id' if 'image_id' in absent else f'no image has the id {listed!r:.80}, its image_id'
        yield Fault('unlisted image', f'{place}: {why}')
    category = one.get('category_id')
    if _is_id(category) and category not in categories:
        yield Fault('unlisted category', f'{place}: the json has no category {category}, and training skips it')
    elif not _is_id(category):
        why = f'the json has no category {category!r:.80}'
        yield Fault('unknown category', f'{place}: {"it has no category_id" if category is None else why}')
    if not other_boxes:
        yield from _box_faults(one, place, image[1] if image else None)
    area = one.get('area')
    if not is_number(area, MAX_COORDINATE**2):
        why = 'it has no area' if 'area' in absent else f'the area {area!r:.80} is not a number'
        yield Fault('invalid area', f'{place}: {why}')
    elif area <= 0:
        yield Fault('zero area', f'{place}: the area is {area:g}, and training drops it')
    crowd = one.get('iscrowd')
    if crowd is None:
        yield Fault('no iscrowd', f'{place}: it has no iscrowd')
    elif not isinstance(crowd, (int, float)) or crowd not in (0, 1):
        yield Fault('invalid iscrowd', f'{place}: iscrowd is {crowd!r:.80}, neither 0 nor 1')


def _box_faults(one: dict, place: str, size: tuple[int, int] | None) -> Iterator[Fault]:
    box = one.get('bbox')
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        why = 'it has no bbox' if box is None else f'the box {box!r:.80} is not [x, y, width, height]'
        yield Fault('invalid box', f'{place}: {why}')
        return
    x, y, w, h = box
    if w < 1 or h < 1:
        text = f'the box {box} has {w:g} x {h:g} pixels, and training drops boxes of less than 1'
        yield Fault('empty box', f'{place}: {text}')
        return
    if size is not None and exceeds(box, size):
        H, W = size
        is_outside = x >= W or y >= H or x + w <= 0 or y + h <= 0
        kind, how = ('box outside', 'is outside of') if is_outside else ('box beyond the border', 'exceeds')
        yield Fault(kind, f'{place}: the box {box} {how} the image of {W} x {H} pixels')
