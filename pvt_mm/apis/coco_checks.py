"""Checks of COCO annotations before a run starts."""

import json
import mmap
import os

from pvt_mm.apis.config import annotation_steps
from pvt_mm.datasets.classes import classes_of
from pvt_mm.utils.errors import InputError
from pvt_mm.utils.text import shorten


def check_annotations(dataset: dict, split: str) -> None:
    """Checks that COCO annotations have the classes of the data set, and the masks that the pipeline loads."""
    ann_file = os.path.join(dataset.get('data_root') or '', dataset.get('ann_file') or '')
    if not ann_file.endswith('.json') or not os.path.isfile(ann_file):
        return
    classes = classes_of(dataset)
    categories = coco_categories(ann_file) if classes else []
    missing = [name for name in classes if name not in categories]
    if missing:
        raise InputError(
            f'the {split} classes do not fit the annotations: {ann_file} has no {shorten(missing)}; its classes are '
            f'{shorten(categories, 10)}: set {split}_dataloader.dataset.metainfo.classes'
        )
    if any(step.get('with_mask') for step in annotation_steps(dataset)):
        with open(ann_file, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            if text.find(b'"segmentation"') < 0:
                raise InputError(
                    f'the {split} annotations have no masks: {ann_file} has no "segmentation", which the pipeline '
                    'loads (with_mask=True); give annotations with masks, or train a detector without masks'
                )


def coco_categories(path: str) -> list[str]:
    """Returns the names of the categories in a COCO annotation file, reading only that part of it."""
    try:
        with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            key = text.find(b'"categories"')
            if key < 0:
                raise ValueError('it has no "categories"')
            start = text.find(b'[', key)
            categories, _ = json.JSONDecoder().raw_decode(text[start : start + 10_000_000].decode(errors='ignore'))
            names = [category['name'] for category in categories]
            if not all(isinstance(name, str) for name in names):
                raise ValueError(f'the names of its categories are not strings: {names[:5]}')
            return names
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f'{path} is not a COCO annotation file: {error}') from None
