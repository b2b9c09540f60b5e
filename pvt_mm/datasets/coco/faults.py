"""Faults in COCO annotations."""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from pvt_mm.datasets.coco.files import ImageFiles, upright_size
from pvt_mm.datasets.coco.masks import MAX_COORDINATE, is_number, mask_fault

SLACK = 1.0  # pixels by which a box may exceed its image: COCO's boxes are rounded
FEW = 0.01  # the share of annotations that training may drop: COCO has two of 860,001 without an area


class Kind(NamedTuple):
    """What to do about faults of a kind."""

    fix: str
    tolerance: float = 0.0  # the share of the annotations, or images, that may have one in training
    is_repaired: bool = True  # by repair


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
    'invalid image': Kind('give each image an id, an integer, and a file_name'),
    'repeated image': Kind('list each image once'),
    'missing image': Kind('correct file_name, or data_prefix', FEW),
    'wrong size': Kind('set width and height to those of the file, turned upright by its EXIF orientation'),
    'unlisted image': Kind('give the image_id of one of the images, as an integer', FEW),
    'invalid id': Kind('number the annotations 1, 2, 3, ... through all images'),
    'unknown category': Kind('give the id of one of the categories'),
    'invalid box': Kind('write bbox as [x, y, width, height], four numbers in pixels'),
    'empty box': Kind('remove these annotations', FEW),
    'box outside': Kind('write bbox as [x, y, width, height] in pixels of the image', FEW),
    'invalid area': Kind('set area to that of the mask or box in pixels'),
    'zero area': Kind('set area to that of the mask or box in pixels', FEW),
    'invalid iscrowd': Kind('set iscrowd to 0, or to 1 for a crowd'),
    'only crowds': Kind('set iscrowd to 0'),
    'no objects': Kind('annotate some objects', is_repaired=False),
    'no images': Kind('list images', is_repaired=False),
    'bad mask': Kind('give each object a segmentation, or train a detector without masks', is_repaired=False),
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
) -> Iterator[Fault]:
    """Yields the faults of a COCO json, as parsed.

    Args:
        content: The object in the json; it is not changed.
        folder: The folder that its file names are relative to; None leaves the image files unchecked.
        classes: The classes that are trained on; None: all categories.
        masks: Whether each object must have a mask. Masks that are there are checked anyway.
        annotated: Whether there must be objects: predicting does without.
        sampled: Of how many images, evenly spaced, the size is read from the file; None: of all.
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
    images = yield from _image_faults(lists['images'], folder, sampled)
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


def stops_training(kind: str, count: int, content: dict) -> bool:
    """Returns whether this many faults of a kind are more than training may have."""
    entries = content.get('images' if kind == 'missing image' else 'annotations') or ()
    return count > KINDS[kind].tolerance * len(entries)


def project_category(categories: list[dict], used: set) -> Any:
    """Returns the category that Roboflow adds, with the project's name: the parent of others, of no object; or None."""
    parents = {one.get('supercategory') for one in categories if isinstance(one.get('supercategory'), str)}
    for one in categories:
        top = one.get('supercategory') in (None, '', 'none')
        if top and isinstance(one.get('name'), str) and one['name'] in parents and _hashable(one.get('id')) not in used:
            return one
    return None


def same_name(name: str) -> str:
    """Returns what is the same for names that differ in case or spaces only."""
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
    names: dict[str, str] = {}
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
        other = names.get(same_name(name))
        names.setdefault(same_name(name), name)
        if other is not None:
            how = '' if other == name else ', which differs in case or spaces only'
            yield Fault('repeated category', f'the category {name!r} is there twice: the other is {other!r}{how}')
    return ids


def _image_faults(images: list[dict], folder: str | os.PathLike | None, sampled: int | None) -> Iterator[Fault]:
    """Yields faults, and returns the name and the size (H, W), or None, of each image by its id."""
    local = folder is not None and os.path.isdir(folder)
    files = ImageFiles(folder) if local else None
    step = 1 if sampled is None else max(1, -(-len(images) // max(1, sampled)))
    found: dict = {}
    seen: set[str] = set()
    for i, one in enumerate(images):
        key, name = one.get('id'), one.get('file_name')
        if not isinstance(name, str) or not name:
            yield Fault('invalid image', f'image {key!r:.80} has the file_name {name!r:.80}')
            found.setdefault(_hashable(key), (f'image {key!r:.80}', None))
            continue
        if not _is_id(key):
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
            actual = upright_size(os.path.join(folder, name))
            if actual and actual != size:
                yield Fault('wrong size', f'{name} has {actual[1]} x {actual[0]} pixels, the json says {W} x {H}')
    return found


def _annotation_faults(annotations: list[dict], images: dict, categories: set, masks: bool) -> Iterator[Fault]:
    limits = {key: (size[1] + SLACK, size[0] + SLACK) for key, (_, size) in images.items() if size and _is_id(key)}
    ids = Counter(_hashable(one.get('id')) for one in annotations)
    unique = len(ids) == len(annotations)
    for one in annotations:
        try:  # what is valid, fast
            x, y, w, h = one['bbox']
            right, bottom = limits[one['image_id']]
            valid = (
                type(one['id']) is int
                and one['id'] > 0
                and type(one['category_id']) is type(one['image_id']) is int
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
            yield from _faults_of(one, where, categories, ids)
        mask = one.get('segmentation')
        fault = mask_fault(mask, where[1]) if mask and where and where[1] else ''
        if fault or (masks and not mask):
            yield Fault('bad mask', f'{_place(one, where)}: {fault or "there is no mask"}')


def _place(annotation: dict, image: tuple | None) -> str:
    name = f'{image[0]}, ' if image else ''
    return f'{name}annotation {annotation.get("id")!r:.80}'


def _faults_of(one: dict, image: tuple | None, categories: set, ids: Counter) -> Iterator[Fault]:
    """Yields the faults of an annotation of an image, its name and size, or None."""
    place = _place(one, image)
    absent = [name for name in ('id', 'image_id', 'category_id', 'bbox', 'area', 'iscrowd') if one.get(name) is None]
    key = one.get('id')
    if not _is_id(key):
        yield Fault('invalid id', f'{place}: its id is {key!r:.80}, not an integer')
    elif key < 1:
        text = f"{place}: its id is below 1, and COCO's evaluation takes a match with the id 0 for none"
        yield Fault('invalid id', text)
    elif ids[key] > 1:
        yield Fault('invalid id', f'{place}: {ids[key]} annotations have this id')
    listed = one.get('image_id')
    if not _is_id(listed) or image is None:
        why = 'it has no image_id' if 'image_id' in absent else f'its image_id is {listed!r:.80}, not an integer'
        if _is_id(listed):
            why = f'no image has the id {listed}, its image_id'
        yield Fault('unlisted image', f'{place}: {why}')
    category = one.get('category_id')
    if not _is_id(category) or category not in categories:
        why = f'the json has no category {category!r:.80}'
        yield Fault('unknown category', f'{place}: {"it has no category_id" if "category_id" in absent else why}')
    yield from _box_faults(one, place, image[1] if image else None)
    area = one.get('area')
    if not is_number(area, MAX_COORDINATE**2):
        why = 'it has no area' if 'area' in absent else f'the area {area!r:.80} is not a number'
        yield Fault('invalid area', f'{place}: {why}')
    elif area <= 0:
        yield Fault('zero area', f'{place}: the area is {area:g}, and training drops it')
    crowd = one.get('iscrowd')
    if not isinstance(crowd, (int, float)) or crowd not in (0, 1):
        why = 'it has no iscrowd' if 'iscrowd' in absent else f'iscrowd is {crowd!r:.80}, neither 0 nor 1'
        yield Fault('invalid iscrowd', f'{place}: {why}')


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
    if size is None:
        return
    H, W = size
    if min(x, y) < -SLACK or x + w > W + SLACK or y + h > H + SLACK:
        corners = x < w <= W + SLACK and y < h <= H + SLACK
        hint = '; is it [x1, y1, x2, y2]?' if corners else ''
        yield Fault('box outside', f'{place}: the box {box} exceeds the image of {W} x {H} pixels{hint}')
