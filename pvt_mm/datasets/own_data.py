"""From a folder of the user's own data, in any common layout, to the settings of data sets that train on it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pvt_mm.datasets.coco import read_coco, repair
from pvt_mm.datasets.layouts import SPLITS, Tree, read_tree, split_of_path
from pvt_mm.utils.errors import InputError
from pvt_mm.utils.files import write_json

KINDS = ('coco', 'label_maps', 'folders')


@dataclass
class OwnData:
    """The user's data, as data sets need it.

    Attributes:
        kind: 'coco' (MMDetection's CocoDataset), 'label_maps' (MMSegmentation's BaseSegDataset) or 'folders'
            (pvt_mm.ImageFolder).
        classes: The names of the classes, in the order of their labels.
        palette: The classes' colours, (R, G, B), if the data has them.
        splits: The settings of the data set of 'train', 'val' and perhaps 'test', without type, metainfo and pipeline.
            All paths are absolute.
        has_masks: Whether all objects have masks, for instance segmentation.
        counts: The number of images of each split.
        notes: What was found, and what was changed, a line each.
    """

    kind: str
    classes: tuple[str, ...]
    splits: dict[str, dict]
    counts: dict[str, int]
    palette: list[tuple[int, int, int]] | None = None
    has_masks: bool = False
    notes: list[str] = field(default_factory=list)


def find_data(paths: Sequence[str], out: str | os.PathLike, seed: int = 0, kind: str | None = None) -> OwnData:
    """Finds the layout of the user's data, and returns the data sets' settings.

    The user's files are never changed. Corrected ones, and lists of the images of each split, are written to ``out``.

    Args:
        paths: A folder, or COCO's json files: one, or those of train, val and perhaps test; each of them, or all, may
            be followed by the folder of its images.
        out: The folder to write to, created if needed.
        seed: Of the split, where the data has no validation split: 20% of its images.
        kind: What to look for, one of ``KINDS``; by default the first of them that is found.

    Raises:
        InputError: No layout is found, or the data is wrong.
    """
    tree = read_tree(paths[0])
    jsons = {split_of_path(path): path for path in tree.matching('*.json') if 'instances' in path.name}
    classes, splits, counts, notes, masks = (), {}, {}, [], []
    for split in SPLITS:
        if split not in jsons:
            continue
        content, lines = repair(read_coco(tree.root / jsons[split]), _images_folder(tree, split))
        ann_file = Path(os.path.abspath(out)) / f'{split}.json'
        write_json(ann_file, content)
        classes = classes or tuple(category['name'] for category in content['categories'])
        splits[split] = dict(ann_file=str(ann_file), data_prefix=dict(img=f'{_images_folder(tree, split)}/'))
        counts[split] = len(content['images'])
        notes += [f'{split}: {line}' for line in lines]
        masks += [bool(annotation.get('segmentation')) for annotation in content['annotations']]
    return OwnData('coco', classes, splits, counts, has_masks=bool(masks) and all(masks), notes=notes)


def _images_folder(tree: Tree, split: str) -> Path:
    folders = {path.parent for path in tree.images if split_of_path(path) == split}
    if not folders:
        raise InputError(f'{tree.root} has no images for {split}')
    return tree.root / min(folders)
