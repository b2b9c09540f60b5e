"""Images with label maps."""

import contextlib
import os
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from pvt_mm.datasets.label_maps import IGNORED, repair_maps
from pvt_mm.datasets.own_data.class_lists import read_class_list
from pvt_mm.datasets.own_data.data import OwnData, in_both, summary
from pvt_mm.datasets.own_data.pairs import find_pairs
from pvt_mm.datasets.own_data.splitting import choose_val
from pvt_mm.datasets.own_data.tree import SPLITS, Tree
from pvt_mm.utils.errors import InputError
from pvt_mm.utils.files import atomic_write

_ADE = 'ADEChallengeData2016'  # ADE20K's own folder, in which 0 is no class


def find(tree: Tree) -> bool:
    """Returns whether a folder has images with label maps."""
    return bool(find_pairs(tree)[0])


def read(tree: Tree, out: Path, seed: int) -> OwnData | None:
    """Returns the data of images with label maps, None if it is another layout; see find_data."""
    found, notes = find_pairs(tree)
    if not found:
        return None
    if not {'train', None} & found.keys():
        raise InputError(f'{tree.root} has label maps to {" and ".join(map(str, found))}, and none to train on')
    if 'val' in found and 'train' not in found:  # a list of those to validate alone
        found['train'] = found.pop(None)
    if 'train' in found and (rest := found.pop(None, [])):
        notes.append(f'{len(rest)} images are in no split and are left out, such as {rest[0][0]}')
    if 'val' not in found and len(next(iter(found.values()))) < 2:
        raise InputError(f'{tree.root} has one image with a label map: add images to validate')
    names = read_class_list(tree)
    pairs = {split: [(tree.root / image, tree.root / one) for image, one in of] for split, of in found.items()}
    every = [one for of in pairs.values() for _, one in of]
    reduce_zero_label = _ADE in {*tree.root.parts, *(part for one in every for part in one.parts)}
    if reduce_zero_label:
        classes, used = list(names.classes or _ade_classes()), every
        notes.insert(0, f'ADE20K: {names.note or "its 150 classes"}; the label 0 is none (reduce_zero_label)')
    else:
        classes, used, lines = repair_maps(every, out / 'maps', names.classes, names.colors)
        notes += lines
        notes.insert(0, names.note or f'no list of the classes: they are named by the label maps; {names.help}')
    replaced = dict(zip(every, used, strict=True))
    pairs = {split: [(image, replaced[one]) for image, one in of] for split, of in pairs.items()}
    if 'val' not in pairs:
        pairs |= _split(tree, pairs.pop(None, None) or pairs['train'], seed, len(classes))
        notes.insert(0, f'no validation split: the images were split by the seed {seed}, see {out}')
    notes += in_both(*({str(image) for image, _ in pairs[split]} for split in ('train', 'val')))
    splits = {
        split: _settings(split, pairs[split], out) | dict(reduce_zero_label=reduce_zero_label)
        for split in SPLITS
        if split in pairs
    }
    counts = {split: len(pairs[split]) for split in splits}
    colors = {name: color for color, name in (names.colors or {}).items()}
    palette = [colors[name] for name in classes] if {*classes} <= {*colors} else None
    notes.insert(0, f'images with label maps: {summary(counts, classes)}')
    return OwnData('label_maps', tuple(classes), splits, counts, palette, notes=notes)


def _ade_classes() -> Sequence[str]:
    from mmseg.datasets import ADE20KDataset  # of MMSegmentation, which detectors do not need

    return ADE20KDataset.METAINFO['classes']


def _split(tree: Tree, pairs: list[tuple[Path, Path]], seed: int, classes: int) -> dict:
    """Returns the pairs to train on and to validate."""

    def labels(path: Path) -> list[int]:
        with Image.open(path) as image:
            return [label for label in np.unique(np.asarray(image)).tolist() if label != IGNORED and label < classes]

    names = {image: image.relative_to(tree.root).as_posix() for image, _ in pairs}
    with ThreadPoolExecutor() as threads:
        found = threads.map(labels, [one for _, one in pairs])
        val = choose_val(dict(zip(names.values(), found, strict=True)), seed)
    if not val:
        raise InputError(f'{tree.root} is too small to split ({len(pairs)} images): add images to validate')
    return {
        split: [pair for pair in pairs if (names[pair[0]] in val) == (split == 'val')] for split in ('train', 'val')
    }


def _settings(split: str, pairs: Sequence[tuple[Path, Path]], out: Path) -> dict:
    """Returns the settings of MMSegmentation's BaseSegDataset, which needs the same suffixes for all images.

    If they differ, label maps are linked into a folder of ``out``, as the image's name with ``.png``.
    """
    images_folder, maps_folder = (_common(pair[side] for pair in pairs) for side in (0, 1))
    images = [image.relative_to(images_folder).as_posix() for image, _ in pairs]
    maps = [one.relative_to(maps_folder).as_posix() for _, one in pairs]
    img_suffix, map_suffix = _suffixes(images[0], maps[0])
    names = [image[: len(image) - len(img_suffix)] for image in images]
    fits = all(
        name and name + img_suffix == image and name + map_suffix == one and name == name.strip()
        for name, image, one in zip(names, images, maps, strict=True)
    )
    if not fits:
        img_suffix, map_suffix, names, maps_folder = '', '.png', images, out / 'linked_maps' / split
        if spaced := [name for name in names if name != name.strip()]:
            raise InputError(f'the name of {images_folder / spaced[0]} begins or ends with a space: rename it')
        for name, (_, one) in zip(names, pairs, strict=True):
            _link(one, maps_folder / f'{name}.png')
    ann_file = out / f'{split}.txt'
    with atomic_write(ann_file) as temporary:
        temporary.write_text(''.join(f'{name}\n' for name in names), encoding='utf-8')
    return dict(
        data_prefix=dict(img_path=f'{images_folder}/', seg_map_path=f'{maps_folder}/'),
        ann_file=str(ann_file),
        img_suffix=img_suffix,
        seg_map_suffix=map_suffix,
    )


def _common(paths: Iterable[Path]) -> Path:
    return Path(os.path.commonpath([path.parent for path in paths]))


def _suffixes(image: str, one: str) -> tuple[str, str]:
    """Returns how the names of an image and of its label map end after what they have in common."""
    end = len(image) - len(PurePosixPath(image).suffix)
    while end and not (image[:end] == one[:end] and image[end] in '-_. ' and one[end : end + 1] in tuple('-_. ')):
        end -= 1
    return image[end:], one[end:]


def _link(source: Path, target: Path) -> None:
    """Links a file, or copies it where links are not supported."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as temporary, contextlib.suppress(shutil.SameFileError):
        try:
            temporary.symlink_to(source)
        except OSError:
            shutil.copyfile(source, temporary)
