"""What is known of the user's data."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from pvt_mm.datasets.label_maps import Color
from pvt_mm.datasets.own_data.splitting import source_of
from pvt_mm.utils.text import shorten

KINDS = {
    'coco': 'COCO json',
    'label_maps': 'images with label maps',
    'folders': 'a folder of images for each class',
}
# The config for each kind of data.
RECIPES = {
    'coco': 'configs/own_data/detection_pvt_v2.py',
    'label_maps': 'configs/own_data/semantic_segmentation_pvt_v2.py',
    'folders': 'configs/own_data/classification_pvt_v2.py',
}


@dataclass
class OwnData:
    """The user's data, as data sets need it.

    Attributes:
        kind: 'coco' (MMDetection's CocoDataset), 'label_maps' (MMSegmentation's BaseSegDataset) or 'folders'
            (pvt_mm.ImageFolder).
        classes: The names of the classes, in the order of their labels.
        splits: The settings of the data set of 'train', 'val' and perhaps 'test', without type, metainfo and pipeline.
            All paths are absolute.
        counts: The number of images of each split.
        palette: The classes' colours, (R, G, B), if the data has them.
        has_masks: Whether all objects have masks, for instance segmentation.
        notes: What was found, and what was changed, a line each.
    """

    kind: str
    classes: tuple[str, ...]
    splits: dict[str, dict]
    counts: dict[str, int]
    palette: list[Color] | None = None
    has_masks: bool = False
    notes: list[str] = field(default_factory=list)


def summary(counts: dict[str, int], classes: Sequence[str]) -> str:
    test = f', {counts["test"]} to test' if 'test' in counts else ''
    return (
        f'{counts["train"]} images to train, {counts["val"]} to validate{test}; {len(classes)} '
        f'class{"es" * (len(classes) != 1)}: {shorten(classes, 10)}'
    )


def differing(found: dict[str, set[str]], classes: Sequence[str], what: str) -> list[str]:
    lines = []
    for split, text in (('train', 'it cannot be learned'), ('val', 'it is not evaluated')):
        absent = [name for name in classes if name not in found[split]]
        if absent:
            lines.append(f'{split} has no {what} of {shorten(absent)}: {text}')
    return lines


def in_both(train: set[str], val: set[str]) -> list[str]:
    """Returns lines on images to validate that are also trained on, as they are or augmented by Roboflow."""
    same = sorted(train & val)
    lines = [f'{len(same)} of {len(val)} images to validate are also in train: {shorten(same, 2)}'] if same else []
    sources = {source_of(os.path.basename(path)) for path in train if '.rf.' in path}
    names = {os.path.basename(path) for path in val - train if '.rf.' in path}
    same = sorted(name for name in names if source_of(name) in sources)
    if same:
        lines.append(
            f'{len(same)} of {len(val)} images to validate have the name of one in train before ".rf.", and may be of '
            f'the same photograph: {shorten(same, 2)}'
        )
    return lines
