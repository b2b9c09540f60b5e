"""From the paths that a user gives to the data sets' settings."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from pvt_mm.datasets.own_data import coco, folders, label_maps
from pvt_mm.datasets.own_data.data import KINDS, RECIPES, OwnData
from pvt_mm.datasets.own_data.others import describe_other
from pvt_mm.datasets.own_data.tree import Tree, read_tree
from pvt_mm.utils.errors import InputError
from pvt_mm.utils.text import shorten

_READERS = {'coco': coco.read, 'label_maps': label_maps.read, 'folders': folders.read}


def find_data(
    paths: Sequence[str], out: str | os.PathLike, seed: int = 0, kind: str | None = None, masks: bool = False
) -> OwnData:
    """Finds the layout of the user's data, and returns the data sets' settings.

    The user's files are never changed. Corrected ones, and lists of the images of each split, are written to ``out``.

    Args:
        paths: A folder, or COCO's json files: one, or those of train, val and perhaps test; each of them, or all, may
            be followed by the folder of its images.
        out: The folder to write to, created if needed.
        seed: Of the split, where the data has no validation split: about 20% of its images.
        kind: What to look for, one of ``KINDS``; by default the first of them that is found.
        masks: Whether each object of COCO's json must have a mask; up to 1% without one are left out.

    Raises:
        InputError: No layout is found, or the data is wrong.
    """
    out = Path(os.path.abspath(out))
    for path in paths:
        if not os.path.exists(path):
            raise InputError(f'{path} does not exist: give a folder, or COCO json files')
    if not paths:
        raise InputError('no data is given: give a folder, or COCO json files')
    if not all(map(os.path.isdir, paths)):
        if kind not in (None, 'coco'):
            raise InputError(f'{paths[0]} is a file, and the config needs {KINDS[kind]}: give the folder')
        return coco.read_jsons(paths, out, seed, masks)
    if len(paths) != 1:
        raise InputError(f'{len(paths)} folders are given: give the one that contains {shorten(paths)}')
    tree = read_tree(paths[0], without=out)
    for name in [kind] if kind else KINDS:
        if data := _READERS[name](tree, out, seed, **({'masks': masks} if name == 'coco' else {})):
            return data
    raise InputError(_describe_missing(tree, kind))


def _describe_missing(tree: Tree, kind: str | None) -> str:
    """Returns what a folder contains instead of a kind of data."""
    finders = {'coco': coco.find_jsons, 'label_maps': label_maps.find, 'folders': folders.find}
    for other, find in finders.items():
        with contextlib.suppress(InputError):
            if kind not in (None, other) and find(tree):
                found = f'{tree.root} contains {KINDS[other]}, and the config needs {KINDS[kind]}'
                return f'{found}: use {RECIPES[other]} for what is there'
    return f'{describe_other(tree, kind or "coco")}; docs/own_data.md lists the layouts that are read'
