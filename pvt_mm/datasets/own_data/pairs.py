"""Pairs of an image and its label map, by the names of folders and files."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from pvt_mm.datasets.image_io import EXTENSIONS
from pvt_mm.datasets.own_data.tree import SPLIT_OF, Tree, read_lines, split_of
from pvt_mm.utils.errors import InputError
from pvt_mm.utils.text import shorten

# Words in the names of folders, and of files, of images and of label maps, and what else such names may contain.
_IMAGE_WORDS = {'images', 'image', 'imgs', 'img', 'jpegimages', 'leftimg', 'rgb', 'photos', 'inputs', 'input'}
_MAP_WORDS = {
    *('annotations', 'annotation', 'annots', 'annot', 'anns', 'ann', 'masks', 'mask', 'labels', 'label', 'labelmaps'),
    *('segmentationclass', 'segmentationclassraw', 'segmentationclasspng', 'segmentations', 'segmentation', 'seg'),
    *('gtfine', 'gt', 'groundtruth', 'truth', 'targets', 'target', 'semantic', 'labelids', 'labeltrainids', 'l'),
}
_OTHER_WORDS = {
    *('segmentationobject', 'instance', 'instances', 'instanceids', 'panoptic', 'color', 'colors', 'depth'),
    'polygons',
}
_MORE_WORDS = {*SPLIT_OF, 'dir', 'default', 'ground', 'bit', 'png', 'raw', 'of', 'data', 'files'}
# What Label Studio calls the PNGs of its brushes, one for each label: the image's name is not in it.
BRUSH = re.compile(r'task-\d+-annotation-\d+-by-.*-tag-.*\.png$')


@dataclass(frozen=True)
class _Entry:
    path: PurePosixPath
    split: str | None
    place: tuple[str, ...]  # the folders that say neither a split nor what the files are

    @property
    def is_lossy(self) -> bool:
        return self.path.suffix.lower() in ('.jpg', '.jpeg', '.jfif')


def find_pairs(tree: Tree) -> tuple[dict[str | None, list[tuple[PurePosixPath, PurePosixPath]]], list[str]]:
    """Returns the pairs of an image and its label map of each split (None if the names say none), sorted by image.

    Label maps lie in folders of their own (``annotations``, ``masks``, ``labels``, ``ann_dir``, ``SegmentationClass``,
    ``gtFine``, ...), or next to the images. Their names are those of the images, or differ in words at the end or the
    beginning such as ``_mask``, ``_labelIds``, ``_L``. Lists such as ``ImageSets/**/train.txt`` choose the splits.
    Second, a line for images without a label map and for label maps without an image, which are left out.

    Raises:
        InputError: There are label maps, and no names of images that agree with theirs, or several for an image.
    """
    by_role: dict[str, list[_Entry]] = defaultdict(list)
    for path in tree.images:
        by_role[_role(path)].append(_entry(path))
    images, maps = by_role['image'] or by_role[''], by_role['map']
    if maps:
        pairs = _match(images, maps)
    else:  # next to the images
        pairs, maps, images = _pairs_by_name(images)
    if not pairs and by_role['image'] and by_role['map']:
        raise InputError(
            f'no label map in {tree.root} has the name of an image: the images are called '
            f'{shorten((one.path for one in images), 2)}, the label maps {shorten((one.path for one in maps), 2)}; '
            'give both the same names'
        )
    notes = []
    if pairs:
        for what, other, files, side in (('images', 'label map', images, 0), ('label maps', 'image', maps, 1)):
            used = {pair[side].path for pair in pairs}
            alone = [one.path for one in files if one.path not in used]
            if side == 1:  # such as Cityscapes' *_gtFine_color.png
                alone = [path for path in alone if not {*_words(path.stem)} & _OTHER_WORDS]
            if alone:
                notes.append(f'{len(alone)} {what} have no {other} and are left out: {shorten(alone, 3)}')
    return _by_split(tree, pairs), notes


def _words(name: str) -> list[str]:
    return [word for word in re.split(r'[^a-z]+', name.lower()) if word]


def _role(path: PurePosixPath) -> str:
    """Returns 'image', 'map', 'other' or '' for what the nearest folder that has a telling name contains."""
    return next((role for part in reversed(path.parts[:-1]) if (role := role_of(part))), '')


def role_of(folder: str) -> str:
    """Returns the role that a folder's name says; '' for ``with_mask``, which may be a class."""
    words = {*_words(re.sub('(annot|labels?|masks?)$', r' \1', folder.lower()))} - _MORE_WORDS
    roles = (('other', _OTHER_WORDS), ('map', _MAP_WORDS - {'l'}), ('image', _IMAGE_WORDS))
    is_role = words <= _OTHER_WORDS | _MAP_WORDS | _IMAGE_WORDS
    return next((role for role, known in roles if is_role and words & known), '')


def _entry(path: PurePosixPath) -> _Entry:
    split, place = None, []
    for part in path.parts[:-1]:
        found = split_of(part)
        split = found or split
        if not found and not role_of(part):
            place.append(part)
    return _Entry(path, split, tuple(place))


def _trimmed(stem: str) -> Iterator[str]:
    """Yields a stem, and what is left of it without its last words: ``a_1_mask``, ``a_1``, ``a``."""
    yield stem
    for separator in reversed(list(re.finditer(r'[-_. ]', stem))):
        if separator.start():
            yield stem[: separator.start()]


def _bare(stem: str) -> tuple[str, str]:
    """Returns a stem without words that say what a file is, and these: ``mask_001`` is ``001`` and ``_mask``."""
    words = re.split(r'[-_. ]+', stem)
    telling = [word for word in words if _is_telling(word)]
    return ' '.join(word for word in words if word not in telling), ''.join(f'_{word}' for word in telling)


def _is_telling(name: str) -> bool:
    """Returns whether a name consists of words that say what a file is."""
    words = _words(name)
    return bool(words) and {*words} <= _IMAGE_WORDS | _MAP_WORDS | _OTHER_WORDS | {'bit'}


def _match(images: Sequence[_Entry], maps: Sequence[_Entry]) -> list[tuple[_Entry, _Entry]]:
    """Pairs label maps with images: by split, place and name if they have all of them in common, by less if not."""
    keys: tuple[Callable[[_Entry], tuple], ...] = (
        lambda one: (one.split, *one.place),
        lambda one: one.place,
        lambda one: (one.split,),
        lambda one: (),
    )
    best: list[tuple[_Entry, _Entry]] = []
    for key in keys:
        pairs = _match_by(images, maps, key)
        if len(pairs) > len(best):
            best = pairs
        if len(best) == len(maps):
            break
    return best


def _match_by(images: Sequence[_Entry], maps: Sequence[_Entry], key: Callable) -> list[tuple[_Entry, _Entry]]:
    stems: dict[tuple, list[_Entry]] = defaultdict(list)
    bare: dict[tuple, list[_Entry]] = defaultdict(list)
    for image in images:
        stems[key(image), image.path.stem].append(image)
        bare[key(image), _bare(image.path.stem)[0]].append(image)
    found: list[tuple[_Entry, str, _Entry]] = []  # an image, how the name of its label map differs, the label map
    for one in maps:
        name, telling = _bare(one.path.stem)
        tries = [(stems, stem, one.path.stem[len(stem) :]) for stem in _trimmed(one.path.stem)]
        for names, stem, end in [*tries, (bare, name, telling)]:
            if len(candidates := names.get((key(one), stem), ())) == 1:
                found.append((candidates[0], end.lower(), one))
                break
    counts = Counter(end for _, end, _ in found)
    by_image: dict[_Entry, dict[str, list[_Entry]]] = defaultdict(lambda: defaultdict(list))
    for image, end, one in found:
        if not end or _is_telling(end) or 2 * counts[end] > len(maps):  # a_2 is no label map of a
            by_image[image][end].append(one)
    return [(image, one) for image, ends in by_image.items() if (one := _choose_map(image, ends))]


def _choose_map(image: _Entry, ends: dict[str, list[_Entry]]) -> _Entry | None:
    """Returns the label map of an image among those whose names begin with its name, by how they end."""
    order = ('', '_labeltrainids', '_labelids', '_gtfine_labeltrainids', '_gtfine_labelids')
    known = {end: maps for end, maps in ends.items() if not {*_words(end)} & _OTHER_WORDS}
    maps = next((known[end] for end in order if end in known), [one for maps in known.values() for one in maps])
    if len(maps) > 1:
        every = sorted(str(one.path) for one in maps)
        raise InputError(f'{image.path} has {len(every)} label maps: {shorten(every)}; keep one')
    return maps[0] if maps else None


def _pairs_by_name(files: Sequence[_Entry]) -> tuple[list[tuple[_Entry, _Entry]], list[_Entry], list[_Entry]]:
    """Pairs images with label maps in the same folder, ``a.jpg`` and ``a_mask.png``; also returns all of both.

    Most images must have one: ``wine_label.png`` may be an image of a class.
    """
    maps, images = [], []
    for one in files:
        words = re.split(r'[-_. ]', one.path.stem.lower())
        is_map = len(words) > 1 and not {words[0], words[-1]}.isdisjoint(_MAP_WORDS)
        (maps if is_map and not one.is_lossy and not BRUSH.search(one.path.name) else images).append(one)
    pairs = _match_by(images, maps, lambda one: one.path.parent) if maps else []
    return (pairs if 2 * len(pairs) > len(images) else []), maps, images


def _by_split(tree: Tree, pairs: Iterable[tuple[_Entry, _Entry]]) -> dict:
    pairs = sorted(pairs, key=lambda pair: pair[0].path)
    listed = _read_lists(tree, {image.path.stem for image, _ in pairs})
    found: dict[str | None, list] = defaultdict(list)
    for image, one in pairs:
        found[listed.get(image.path.stem) or one.split or image.split].append((image.path, one.path))
    return dict(found)


def _read_lists(tree: Tree, stems: set[str]) -> dict[str, str]:
    """Returns the split of each stem that lists such as VOC's ``ImageSets/Segmentation/train.txt`` have."""
    listed: dict[str, str] = {}
    for path in tree.ending('.txt'):
        if path.stem.lower() in SPLIT_OF and path.parent.name not in ('Main', 'Action', 'Layout'):  # VOC's other tasks
            names = [PurePosixPath(line.split()[0]).name for line in read_lines(tree.root / path)]
            names = [name[: -len(suffix)] if (suffix := _image_suffix(name)) else name for name in names]
            if 2 * len(stems.intersection(names)) >= len(names):
                listed |= {name: SPLIT_OF[path.stem.lower()] for name in names if name not in listed}
    return listed


def _image_suffix(name: str) -> str:
    return next((suffix for suffix in EXTENSIONS if name.lower().endswith(suffix)), '')
