"""Faults in the data of a config: checks every image, annotation and label map that training and testing would read."""

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from rich.console import Console
from rich.progress import track

from pvt_mm.analysis.dataset_check.coco import list_coco
from pvt_mm.analysis.dataset_check.findings import Findings, Item, Split
from pvt_mm.analysis.dataset_check.folders import list_folders
from pvt_mm.analysis.dataset_check.label_maps import check_all_maps, check_map, list_maps
from pvt_mm.apis.channel_checks import channels_of
from pvt_mm.apis.coco_checks import predicts_only
from pvt_mm.apis.config import SPLITS, leaf_datasets, type_name
from pvt_mm.apis.data_checks import describe_missing
from pvt_mm.datasets.classes import classes_of, differing_classes, image_folder
from pvt_mm.datasets.image_io import build_loader, read_image
from pvt_mm.utils.errors import WRONG_CONFIG, InputError, config_errors
from pvt_mm.utils.text import shorten


def check_datasets(config: Config) -> list[Split]:
    """Checks all data that the train, val and test data sets of a config read, in parallel.

    Supports COCO's layout, MMSegmentation's label maps, ``ImageFolder``, and wrappers around them. Returns the data
    sets with their findings; val and test are one if they read the same files.

    Raises:
        InputError: There is no data at all, or a data set cannot be built or is of another kind.
    """
    init_default_scope(config.get('default_scope', 'mmengine'))
    splits = [_open(name, cfg, config) for name, cfg in _data_sets(config)]
    if not splits:
        raise InputError('the config has no train_dataloader, val_dataloader or test_dataloader: there is no data')
    if not any(split.items for split in splits) and all(f.kind == 'missing' for split in splits for f in split.faults):
        raise InputError(f'the data is missing: {splits[0].faults[0].text}')
    work = [(split, item) for split in splits for item in split.items]
    digests: dict[bytes, tuple[Split, str]] = {}
    with ThreadPoolExecutor() as threads:
        checked = _map(threads, lambda one: _check(*one), work)
        shown = track(checked, 'reading the data', len(work), console=Console(stderr=True), transient=True)
        for (split, item), (found, digest) in zip(work, shown, strict=True):
            split.faults += found.faults
            split.seen += found.seen
            other, path = digests.setdefault(digest, (split, item.path)) if digest else (split, '')
            if other.name != split.name and (path != item.path or 'train' in (other.name, split.name)):
                split.add('duplicate', f'{item.path} has the same pixels as {path} of the {other.name} data')
    check_all_maps(splits)
    for split in splits:
        seen = sum((other.seen for other in splits if other.name == split.name), Counter())  # of concatenated data
        unseen = [name for i, name in enumerate(split.classes) if not seen[i]]
        if unseen and split.items:
            text = f'{len(unseen)} of {len(split.classes)} classes have no example: {shorten(unseen, limit=10)}'
            if split.name == 'train':
                split.add('class never seen', text)
            else:
                split.remarks.append(text)
    trained = [split.classes for split in splits if split.name == 'train' and split.classes]
    for split in splits:
        differences = [differing_classes(classes, split.classes, 'train', split.name) for classes in trained]
        if split.classes and any(differences):
            split.add('other classes', next(filter(None, differences)))
    return splits


def _data_sets(config: Config) -> Iterator[tuple[str, dict]]:
    """Yields the name and config of each data set; val and test are one if they read the same files."""
    loaders = {name: config[f'{name}_dataloader'] for name in SPLITS if config.get(f'{name}_dataloader')}
    found = [(name, leaf) for name, loader in loaders.items() for leaf in leaf_datasets(loader.dataset)]
    keys = ('data_root', 'ann_file', 'data_prefix', 'indices', 'metainfo', 'reduce_zero_label')
    read = [(name, [leaf.get(key) for key in keys]) for name, leaf in found]
    for (name, leaf), (_, files) in zip(found, read, strict=True):
        if name == 'val' and ('test', files) in read:
            yield 'val, test', leaf
        elif name != 'test' or ('val', files) not in read:
            yield name, leaf


def _map(threads: ThreadPoolExecutor, function: Any, work: Iterable, batch_size: int = 1024) -> Iterator:
    """Yields the results of ``ThreadPoolExecutor.map`` in batches, since it would submit millions of images at once."""
    work = iter(work)
    while batch := list(islice(work, batch_size)):
        yield from threads.map(function, batch)


def _open(name: str, cfg: dict, config: Config) -> Split:
    """Lists the images and annotations of a data set, without reading images."""
    if image_folder(cfg) is None:
        classes_of(cfg)  # raises an error that says how to write them
    with config_errors(f'the {name} data cannot be built'), DATASETS.switch_scope_and_registry(None) as registry:
        dataset = registry.build({**cfg, 'pipeline': [], 'lazy_init': True})
    split = Split(name, classes=list(dataset.metainfo.get('classes') or ()))
    split.load = build_loader(cfg.get('pipeline') or ())
    split.channels = channels_of(config)
    readers = {  # by name, since MMDetection and MMSegmentation are optional
        'mmdet.CocoDataset': list_coco,
        'mmseg.BaseSegDataset': list_maps,
        'pvt_mm.ImageFolder': list_folders,
    }
    bases = (f'{base.__module__.split(".")[0]}.{base.__name__}' for base in type(dataset).__mro__)
    reader = next((readers[base] for base in bases if base in readers), None)
    if reader is None:
        supported = 'only COCO, MMSegmentation label maps and ImageFolder are supported'
        raise InputError(f'the {name} data is a {cfg["type"]}: {supported}')
    optional = ['seg_map_path'] if predicts_only(config, name) else []
    paths = [dataset.ann_file, *(path for key, path in dataset.data_prefix.items() if key not in optional)]
    absent = [path for path in paths if path and '://' not in path and not os.path.exists(path)]
    for path in absent:
        split.add('missing', describe_missing(path, dataset.data_root, type_name(cfg)))
    if not absent:
        reader(split, dataset, cfg.get('pipeline') or [], config)
    if split.items and cfg.get('indices') is not None:
        # Invalid annotations fail: then all items are checked. pycocotools prints.
        with contextlib.suppress(*WRONG_CONFIG), contextlib.redirect_stdout(None):
            dataset.full_init()
            chosen = {dataset.get_data_info(i)['img_path'] for i in range(len(dataset))}
            split.items = [item for item in split.items if item.path in chosen]
    return split


def _check(split: Split, item: Item) -> tuple[Findings, bytes | None]:
    """Reads an image and checks its annotations; returns the findings and a digest of the pixels if it is readable."""
    found, size, digest = Findings(split.name), None, None
    if not item.exists:
        return found, None
    try:
        image = np.ascontiguousarray(read_image(item.path, split.load))
    except InputError as error:
        found.add('unreadable image' if os.path.exists(item.path) else 'missing image', str(error))
    else:
        size = image.shape[:2]
        channels = image.shape[2] if image.ndim == 3 else 1
        if split.channels and channels != split.channels:
            found.add('wrong channels', f'{item.path} has {channels} channels, and the model takes {split.channels}')
        digest = hashlib.blake2b(image, digest_size=16, key=f'{size}'.encode()).digest()
    if item.size and size and size != tuple(item.size):
        expected = f'{item.size[1]} x {item.size[0]}'
        found.add('wrong size', f'{item.path} has {size[1]} x {size[0]} pixels, the json says {expected}')
    if item.label is not None and digest:
        found.seen[item.label] += 1
    if item.seg_map and split.maps:
        check_map(found, split, item.seg_map, size)
    return found, digest
