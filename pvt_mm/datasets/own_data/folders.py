"""A folder of images for each class."""

from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pvt_mm.datasets.own_data.data import OwnData, differing, in_both, summary
from pvt_mm.datasets.own_data.pairs import role_of
from pvt_mm.datasets.own_data.splitting import choose_val
from pvt_mm.datasets.own_data.tree import SPLITS, Tree, common_folder, split_of
from pvt_mm.utils.errors import InputError
from pvt_mm.utils.files import atomic_write
from pvt_mm.utils.text import shorten


class Split(NamedTuple):
    """A folder with a folder for each class, and the images of each, by their paths in it."""

    folder: PurePosixPath
    images: dict[str, list[PurePosixPath]]


# None is one that is to be split.
Found = dict[str | None, Split]


def find(tree: Tree) -> Found:
    """Returns the images of each class of each split (None if there are no splits); empty if it is another layout.

    The layouts are ``<split>/<class>/**`` and ``<class>/**``, in the folder itself or below others.

    Raises:
        InputError: There are classes to train on, and images to validate that are in no folders of classes.
    """
    for base in sorted({folder.parent for folder in tree.folders if split_of(folder.name) == 'train'}, key=_depth):
        part = tree.below(base)
        tops = {path.parts[0] for path in part.images if len(path.parts) > 1}
        train = [top for top in tops if split_of(top) == 'train' and _has_classes(part.below(PurePosixPath(top)))]
        if len(train) == 1:
            found: Found = {'train': _classes(tree, base / train[0])}
            for split in SPLITS[1:]:
                folders = sorted(base / top for top in tops if split_of(top) == split)
                classes = [of for folder in folders if (of := _classes(tree, folder)).images]
                if len(classes) > 1 or (folders and not classes and split == 'val'):
                    raise InputError(
                        f'{tree.root} has classes in {base / train[0]}, and {shorten(folders)} to validate: put the '
                        'images to validate into one folder, with a folder for each class'
                    )
                if classes:
                    found[split] = classes[0]
            return found
    base = common_folder(tree.images)
    return {None: _classes(tree, base)} if _has_classes(tree.below(base)) else {}


def _depth(folder: PurePosixPath) -> tuple[int, str]:
    return len(folder.parts), str(folder)


def _has_classes(tree: Tree) -> bool:
    """Returns whether most images lie in subfolders, two at least, whose names say nothing else."""
    inner = [path.parts[0] for path in tree.images if len(path.parts) > 1]
    is_class = [not (role_of(name) or split_of(name)) for name in {*inner}]
    return len(inner) > 0.9 * len(tree.images) and len(is_class) > 1 and sum(is_class) >= len(is_class) / 2


def _classes(tree: Tree, folder: PurePosixPath) -> Split:
    images: dict[str, list[PurePosixPath]] = defaultdict(list)
    for path in tree.below(folder).images:
        if len(path.parts) > 1:
            images[path.parts[0]].append(path)
    return Split(folder, dict(sorted(images.items())))


def read(tree: Tree, out: Path, seed: int) -> OwnData | None:
    """Returns the data of folders of classes, None if it is another layout; see find_data."""
    found = find(tree)
    if not found:
        return None
    notes = []
    if None in found or 'val' not in found:
        whole = found.pop(None, None) or found['train']
        found |= _split(tree, whole, seed)
        notes.append(f'no validation split: the images were split by the seed {seed}, see {out}')
    classes = tuple(found['train'].images)
    for split, one in found.items():
        other = [name for name in one.images if name not in classes]
        if other:
            alike = sorted({*map(str.casefold, other)} & {*map(str.casefold, classes)})
            near = [name for name in classes if name.casefold() in alike]
            what = f'which has {shorten(near)}: use one name' if near else 'none in train: add some'
            where = f'{tree.root} has images of {shorten(other)} in {split}'
            raise InputError(f'{where}, and {"not in train, " * bool(near)}{what}')
    notes += differing({split: {*found[split].images} for split in ('train', 'val')}, classes, 'images')
    paths = {
        split: [str(found[split].folder / path) for of in found[split].images.values() for path in of]
        for split in SPLITS
        if split in found
    }
    notes += in_both({*paths['train']}, {*paths['val']})
    splits = {}
    for split in paths:
        folder, images = found[split]
        lines = [f'{path} {label}\n' for label, name in enumerate(classes) for path in images.get(name, ())]
        ann_file = out / f'{split}.txt'
        with atomic_write(ann_file) as temporary:
            temporary.write_text(''.join(lines), encoding='utf-8')
        splits[split] = dict(data_root=f'{tree.root}/', data_prefix=dict(img_path=f'{folder}/'), ann_file=str(ann_file))
    counts = {split: len(of) for split, of in paths.items()}
    notes.insert(0, f'folders of classes: {summary(counts, classes)}')
    return OwnData('folders', classes, splits, counts, notes=notes)


def _split(tree: Tree, one: Split, seed: int) -> Found:
    """Returns the images to train on and to validate."""
    val = choose_val({str(path): [name] for name, paths in one.images.items() for path in paths}, seed)
    if not val:
        raise InputError(f'{tree.root} is too small to split: put images to validate into val/<class>/')
    parts: dict[str, dict] = {'train': {}, 'val': {}}
    for name, paths in one.images.items():
        for split, part in parts.items():
            if chosen := [path for path in paths if (str(path) in val) == (split == 'val')]:
                part[name] = chosen
    return {split: Split(one.folder, part) for split, part in parts.items()}
