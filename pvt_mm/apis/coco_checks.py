"""Checks of COCO annotations, with the code by which training reads them."""

import contextlib
import logging
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from pvt_mm.apis.config import annotation_steps, as_list, type_name
from pvt_mm.apis.remembered import Remembered
from pvt_mm.datasets.classes import classes_of
from pvt_mm.datasets.coco import KINDS, Fault, encoding_fault, find_faults, read_coco
from pvt_mm.datasets.coco.faults import stops_training
from pvt_mm.datasets.coco.reading import no_garbage_collection
from pvt_mm.datasets.coco.repair import did_you_mean
from pvt_mm.datasets.image_io import find_fault, loader_of
from pvt_mm.utils.errors import InputError, config_errors
from pvt_mm.utils.text import shorten
from pvt_mm.version import __version__

SAMPLED = 200  # images that are looked at before training; tools/check_dataset.py reads all


def check_annotations(dataset: dict, config: Config, split: str) -> None:
    """Checks that COCO annotations have no faults, the classes of the data set, and the masks that are loaded.

    A file that has passed is not read again until it changes. What training may drop, up to 1% of the annotations, is
    logged.

    Raises:
        InputError: A fault would crash training or evaluation, or make their results wrong.
    """
    path = os.path.join(dataset.get('data_root') or '', dataset.get('ann_file') or '')
    if not path.endswith('.json') or not os.path.isfile(path):
        return
    classes_of(dataset)  # raises if they are not a list
    with config_errors(f'the {split} data cannot be built'):
        opened = open_coco(dataset)
    if opened is None:
        return
    annotated, masks = not predicts_only(config, split), needs_masks(dataset, config, split)
    settings = (__version__, dataset, annotated, masks)
    checked = Remembered('annotations', dataset.get('data_root') or '', [path, *_folders(opened)], settings)
    if checked.has_passed():
        return
    content = read_coco(path)
    counts: Counter = Counter()
    found: defaultdict[str, list[Fault]] = defaultdict(list)
    with no_garbage_collection():
        for fault in find_data_faults(opened, content, annotated, masks, SAMPLED, split):
            counts[fault.kind] += fault.count
            found[fault.kind] += [fault] if len(found[fault.kind]) < 2 else []
    for kind, (fault, *others) in found.items():
        if kind in ('bad mask', 'empty mask') and not masks:  # they are not loaded
            continue
        number = f' ({counts[kind]:,} such faults)' if others else ''
        line = f'the {split} annotations, {path}: {fault.text:.500}{number}'
        if stops_training(kind, counts[kind], content, split):
            fix = fault.fix or KINDS[kind].fix
            if KINDS[kind].is_repaired and split != 'test':
                root = dataset.get('data_root') or path
                fix += f'; or train with --data {root}, which writes a corrected copy'
            raise InputError(f'{line}; {fix}')
        print_log(f'{line}; tools/check_dataset.py lists all', 'current', logging.WARNING)
    checked.record()


def open_coco(dataset: dict) -> BaseDataset | None:
    """Builds the data set of a config without reading its annotations; returns None if it is not one of COCO's."""
    with DATASETS.switch_scope_and_registry(None) as registry:
        if not is_coco(registry.get(dataset['type'])):
            return None
        return registry.build({**dataset, 'lazy_init': True, 'serialize_data': False})


def is_coco(kind: type | None) -> bool:
    """Returns whether a class is MMDetection's CocoDataset, or one that reads annotations as it does."""
    base = next((base for base in getattr(kind, '__mro__', ()) if _full_name(base) == 'mmdet.CocoDataset'), None)
    same = ('load_data_list', 'COCOAPI')  # panoptic annotations and LVIS have others
    return base is not None and all(getattr(kind, name) is getattr(base, name) for name in same)


def _full_name(kind: type) -> str:
    return f'{kind.__module__.split(".")[0]}.{kind.__name__}'


def predicts_only(config: Config, split: str) -> bool:
    """Returns whether the evaluators of a split only write predictions, which needs no ground truth."""
    evaluators = as_list(config.get(f'{split}_evaluator'))
    return bool(evaluators) and all(one.get('format_only') or type_name(one).startswith('Dump') for one in evaluators)


def needs_masks(dataset: dict, config: Config, split: str) -> bool:
    """Returns whether the pipeline of a data set or the evaluators of its split read masks."""
    metrics = [name for one in as_list(config.get(f'{split}_evaluator')) for name in _names(one.get('metric'))]
    return 'segm' in metrics or any(step.get('with_mask') for step in annotation_steps(dataset))


def _names(value: Any) -> Sequence[str]:
    return value if isinstance(value, (list, tuple)) else [value]


def _folders(dataset: BaseDataset) -> list[str]:
    return [path for path in dataset.data_prefix.values() if isinstance(path, str) and os.path.isdir(path)]


def find_data_faults(
    dataset: BaseDataset, content: dict, annotated: bool, masks: bool, sampled: int, split: str = 'train'
) -> Iterator[Fault]:
    """Yields the faults of a COCO json for the data set that reads it, which is fully initialized if it can be.

    The data set's own code says which objects it drops and how it numbers the classes.

    Args:
        dataset: The data set, from :func:`open_coco`.
        content: The json, from ``read_coco``.
        annotated: Whether there must be objects.
        masks: Whether each must have a mask.
        sampled: The number of images whose size is read from their files.
        split: ``'train'``, or another one, which may lack objects of a parent class.
    """
    if encoding := encoding_fault(dataset.ann_file):
        yield Fault('invalid annotations', encoding)
    classes = tuple(dataset.metainfo.get('classes') or ())
    folder = dataset.data_prefix.get('img') or '.'
    faults = 0
    options = dict(classes=classes, masks=masks, annotated=annotated, sampled=sampled, load=loader_of(dataset))
    for fault in find_faults(content, folder, **options):
        if fault.kind != 'project as category' or split == 'train':
            faults += KINDS[fault.kind].tolerance == 0 and not KINDS[fault.kind].is_evaluated
            yield fault
    if not all(isinstance(content.get(name), list) for name in ('images', 'annotations', 'categories')):
        return
    try:
        infos = load(dataset, content)
    except Exception as error:  # whatever odd values raise
        if not faults:
            yield Fault('invalid annotations', f'{type(dataset).__name__} cannot read it: {_describe(error)}')
        return
    yield from _class_faults(dataset, content, classes)
    if not annotated or not content['annotations'] or not content['images']:
        return
    yield from _dropped(dataset, content, infos)
    if not len(dataset):
        left_out = f'filter_cfg={dict(dataset.filter_cfg or {})} and indices={dataset._indices}'
        yield Fault('no images', f'training leaves out all {len(infos)} images, by {left_out}')
        return
    if not faults:
        yield from _pipeline_faults(dataset)


def load(dataset: BaseDataset, content: dict) -> list[dict]:
    """Initializes a data set from a parsed json by its own code; returns the images before any is left out."""

    def parsed(path: str) -> Any:
        api = type(dataset).COCOAPI()
        api.dataset = content
        api.createIndex()
        api.img_ann_map, api.cat_img_map = api.imgToAnns, api.catToImgs
        return api

    dataset.COCOAPI = parsed
    with contextlib.redirect_stdout(None):  # pycocotools prints
        infos = type(dataset).load_data_list(dataset)
        dataset.load_data_list = lambda: list(infos)
        dataset.full_init()
    return infos


def _class_faults(dataset: BaseDataset, content: dict, classes: tuple[str, ...]) -> Iterator[Fault]:
    """Yields why the names of the classes are not those of the json's categories in the order of their numbers."""
    by_id = {one['id']: one['name'] for one in content['categories'] if isinstance(one['name'], str)}
    if len(by_id) < len(content['categories']):  # among the faults
        return
    numbered = [by_id[key] for key in dataset.cat_ids]
    names = list(by_id.values())
    write = f'write metainfo.classes={tuple(numbered or names)!r:.500}'
    if not classes:
        yield Fault('wrong classes', 'metainfo.classes is None, so that no class is trained on', fix=write)
    missing = [name for name in classes if name not in names]
    if missing:
        text = f'the classes do not fit: it has no {shorten(missing)}; its classes are {shorten(names, 10)}'
        text += did_you_mean(missing[0], names)
        yield Fault('wrong classes', text, fix=write if set(missing) >= set(classes) else '')
    elif len(set(numbered)) == len(numbered) and numbered != list(classes):
        text = f'metainfo.classes is {shorten(classes, 10)}, but MMDetection numbers classes in the order of the json'
        yield Fault('wrong classes', text, fix=write)


def _dropped(dataset: BaseDataset, content: dict, infos: list[dict]) -> Iterator[Fault]:
    """Yields how many objects of its classes the data set drops."""
    by_image = defaultdict(list)
    for one in content['annotations']:
        by_image[one['image_id']].append(one)
    images = {one['id']: one for one in content['images']}
    reasons: Counter = Counter()
    kept = 0
    for info in infos:
        objects = by_image[info['img_id']]
        if len(info['instances']) == len(objects):
            kept += len(objects)
            continue
        for one in objects:
            if parse(dataset, images[info['img_id']], one):
                kept += 1
            elif one['category_id'] in dataset.cat2label and not one.get('ignore'):  # which is meant
                reasons[why_dropped(one)] += 1
    if reasons:
        counted = [f'{reason} ({count:,})' if len(reasons) > 1 else reason for reason, count in reasons.items()]
        text = f'training drops {reasons.total():,} of {reasons.total() + kept:,} objects: {shorten(counted)}'
        yield Fault('dropped objects', text, reasons.total())


def parse(dataset: BaseDataset, image: dict, annotation: dict) -> dict | None:
    """Returns what a data set makes of an annotation of an image, or None if it drops it."""
    raw_image = {**image, 'img_id': image['id']}
    instances = dataset.parse_data_info({'raw_img_info': raw_image, 'raw_ann_info': [annotation]})['instances']
    return instances[0] if instances else None


def why_dropped(annotation: dict) -> str:
    """Returns why MMDetection drops an object of its classes."""
    _, _, w, h = annotation['bbox']
    if annotation.get('ignore'):
        return 'ignore is set'
    if annotation['area'] <= 0:
        return 'area 0'
    return 'a box of less than a pixel' if min(w, h) < 1 else 'a box outside of the image'


def _pipeline_faults(dataset: BaseDataset) -> Iterator[Fault]:
    """Yields why the pipeline fails on an image, or that it drops all objects of the images that it is tried on."""
    chosen = range(0, len(dataset), max(1, len(dataset) // SAMPLED))
    loads = any(type(step).__name__ == 'LoadAnnotations' for step in dataset.pipeline.transforms)
    tried = objects = 0
    with _keep_random_state():
        for i in chosen:
            info = dataset.get_data_info(i)
            given = sum(not instance['ignore_flag'] for instance in info['instances'])
            if not given or find_fault(info, decode=True):  # a fault of its own
                continue
            try:
                result = dataset.prepare_data(i)
            except Exception as error:  # transforms raise anything
                yield Fault('invalid pipeline', f'{info["img_path"]}: the pipeline raises {_describe(error)}')
                return
            if not loads or _objects_in(result):
                return
            tried, objects = tried + 1, objects + given
    if tried:
        text = f'the pipeline drops all {objects} objects of the {tried} images that it was tried on'
        yield Fault('dropped objects', text, len(dataset) * objects)


def _objects_in(result: dict | None) -> int:
    """Returns the number of objects in the output of a pipeline."""
    if result is None:
        return 0
    if 'data_samples' in result:
        return len(result['data_samples'].get('gt_instances', ()))
    return int((~np.asarray(result.get('gt_ignore_flags', ()), bool)).sum())


@contextlib.contextmanager
def _keep_random_state() -> Iterator[None]:
    """Restores the random numbers of the CPU at the end of the block."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])


def _describe(error: Exception) -> str:
    return f'{type(error).__name__}: {" ".join(str(error).split()):.200}'
