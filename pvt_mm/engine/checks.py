"""What can be wrong with a run, found before it starts."""

import functools
import json
import mmap
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import DATASETS, TRANSFORMS
from rich.console import Console
from rich.progress import track
from torch import nn

from pvt_mm.checkpoint import CheckpointError, check_weights, read_checkpoint, read_file
from pvt_mm.errors import InputError

LAYOUTS = {
    'CocoDataset': 'COCO is laid out as annotations/instances_{train,val}2017.json, train2017/*.jpg and val2017/*.jpg',
    'ADE20KDataset': 'ADE20K is laid out as {images,annotations}/{training,validation}/*.{jpg,png}',
}


def check_data(config: Config, *splits: str) -> None:
    """Checks that the data sets of the splits (``train``, ``val``, ``test``) are there and fit the model.

    Raises:
        InputError: A file or folder is missing (the message says how to lay the data out), annotations lack a class
            that the config has, a label map has a value that is none, or a head predicts another number of classes than
            there are.
    """
    for split in splits:
        loader = config.get(f'{split}_dataloader')
        size = loader.get('batch_size', 1) if loader else 1
        if not isinstance(size, int) or size < 1:
            raise InputError(f'{split}_dataloader.batch_size is {size}: it must be at least 1')
        for dataset in _leaves(loader.dataset) if loader else ():
            _check_paths(dataset, split)
            _check_classes(dataset, config, split)
            _check_masks(dataset, split)
            _check_labels(dataset, config, split)
        for evaluator in _as_list(config.get(f'{split}_evaluator')):
            path = evaluator.get('ann_file')
            if path and not os.path.exists(path):
                raise InputError(f'{split}_evaluator.ann_file, {path}, does not exist')


def _leaves(dataset: dict) -> Iterator[dict]:
    """Yields the data sets inside wrappers such as RepeatDataset and ConcatDataset."""
    inner = [dataset['dataset']] if 'dataset' in dataset else dataset.get('datasets')
    if inner is None:
        yield dataset
    else:
        for part in inner:
            yield from _leaves(part)


def _check_paths(dataset: dict, split: str) -> None:
    root = dataset.get('data_root') or ''
    names = [dataset.get('ann_file'), *(dataset.get('data_prefix') or {}).values()]
    for name in names:
        path = os.path.join(root, name) if isinstance(name, str) else ''
        if path and '://' not in path and not os.path.exists(path):
            layout = LAYOUTS.get(dataset['type'].split('.')[-1], 'data_root, ann_file and data_prefix say what is read')
            raise InputError(
                f'the {split} data is not there: {path} does not exist. {layout}, below {root or "data_root"}; where '
                'it is elsewhere, add --cfg-options data_root=PATH'
            )


def _check_classes(dataset: dict, config: Config, split: str) -> None:
    classes = _classes(dataset)
    if not classes:
        return
    ann_file = _annotations(dataset)
    if ann_file:
        categories = coco_categories(ann_file)
        missing = [name for name in classes if name not in categories]
        if missing:
            raise InputError(
                f'the {split} classes do not fit the annotations: {ann_file} has no {", ".join(missing[:5])}'
                f'{" …" if len(missing) > 5 else ""}; its classes are {", ".join(categories[:10])}'
                f'{" …" if len(categories) > 10 else ""}: name them with {split}_dataloader.dataset.metainfo.classes'
            )
    for where, number in _head_classes(config.model, 'model'):
        if number != len(classes):
            raise InputError(f'{where} is {number}, and the {split} data has {len(classes)} classes: set it to that')


def _check_masks(dataset: dict, split: str) -> None:
    """Checks that the annotations have the masks that the pipeline loads."""
    steps = [step for step in dataset.get('pipeline') or () if step['type'] == 'LoadAnnotations']
    ann_file = _annotations(dataset)
    if not ann_file or not any(step.get('with_mask') for step in steps):
        return
    with open(ann_file, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        if text.find(b'"segmentation"') < 0:
            raise InputError(
                f'the {split} annotations have no masks: {ann_file} has no "segmentation", which the pipeline loads '
                '(with_mask=True); give annotations with masks, or train a detector of boxes alone'
            )


def _check_labels(dataset: dict, config: Config, split: str) -> None:
    """Checks that the label maps have no value but the classes' and the one to ignore. The first process reads them."""
    steps = [step for step in dataset.get('pipeline') or () if step['type'] == 'LoadAnnotations']
    if 'decode_head' not in config.model or not steps or int(os.environ.get('RANK', 0)) > 0:
        return
    head = config.model.decode_head
    with DATASETS.switch_scope_and_registry(None) as registry:
        infos = list(registry.build({**dataset, 'pipeline': []}))
    with TRANSFORMS.switch_scope_and_registry(None) as registry:
        load = registry.build(steps[0])
    values = functools.partial(_label_values, load)
    task = f'checking the labels of the {split} data'
    with ThreadPoolExecutor() as threads:
        maps = zip(infos, threads.map(values, infos), strict=True)
        for info, found in track(maps, task, len(infos), console=Console(stderr=True), transient=True):
            wrong = [value for value in found if value >= head.num_classes and value != head.get('ignore_index', 255)]
            if wrong:
                reduced = ' once reduce_zero_label has taken 1 off' if info['reduce_zero_label'] else ''
                threads.shutdown(wait=False, cancel_futures=True)
                raise InputError(
                    f'{info["seg_map_path"]} has the label {wrong[0]}{reduced}, and the {head.num_classes} classes are '
                    f'0 to {head.num_classes - 1}: mend the label map, or set num_classes and metainfo.classes'
                )


def _label_values(load: Callable[[dict], dict], info: dict) -> list[int]:
    """Returns the values of a label map, as training will see them.

    Raises:
        InputError: It is missing or damaged, or the pipeline and the data set disagree on what 0 means.
    """
    try:
        labels = load(dict(info))['gt_seg_map']
    except (OSError, ValueError, AssertionError) as error:
        raise InputError(f'the label map {info["seg_map_path"]} cannot be read: {error}') from error
    return np.bincount(labels.ravel()).nonzero()[0].tolist()


def _annotations(dataset: dict) -> str | None:
    """Returns the path of a data set's COCO annotations, None where there are none."""
    path = os.path.join(dataset.get('data_root') or '', dataset.get('ann_file') or '')
    return path if path.endswith('.json') and os.path.isfile(path) else None


def _classes(dataset: dict) -> list[str]:
    given = (dataset.get('metainfo') or {}).get('classes')
    if isinstance(given, str):
        raise InputError(f'metainfo.classes is the string {given!r}: write a tuple, ({given!r},) for one class')
    if given is None:
        with DATASETS.switch_scope_and_registry(None) as registry:  # the default scope's, mmdet's say
            given = getattr(registry.get(dataset['type']), 'METAINFO', {}).get('classes')
    return list(given or ())


def _head_classes(config: dict, where: str) -> Iterator[tuple[str, int]]:
    """Yields each ``num_classes`` of the heads of a model's config, and its key."""
    for name, part in config.items():
        if name == 'num_classes':
            yield f'{where}.num_classes', part
        elif name not in ('backbone', 'rpn_head') and isinstance(part, dict):
            yield from _head_classes(part, f'{where}.{name}')


def coco_categories(path: str) -> list[str]:
    """Returns the names of the categories in a COCO annotation file, reading only that part of it.

    Raises:
        InputError: The file is no COCO annotation file.
    """
    try:
        with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            key = text.find(b'"categories"')
            if key < 0:
                raise ValueError('it has no "categories"')
            start = text.find(b'[', key)
            categories, _ = json.JSONDecoder().raw_decode(text[start : start + 10_000_000].decode(errors='ignore'))
            return [category['name'] for category in categories]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f'{path} is no COCO annotation file: {error}') from None


def check_checkpoint(model: nn.Module, path: str, strict: bool) -> None:
    """Checks that a checkpoint is for ``model``, all of it or (not ``strict``) some, saying which is not.

    Raises:
        CheckpointError: It cannot be read, or has a missing, unknown or misshapen key; not strict: or fits nowhere.
    """
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    weights = {key.removeprefix('module.'): value for key, value in read_checkpoint(path).items()}
    target = model.state_dict()
    try:
        check_weights(weights, target)
    except CheckpointError as error:
        hint = 'tools/convert_checkpoint.py turns weights of other PVT implementations into ours'
        fitting = [key for key in target if key in weights and weights[key].shape == target[key].shape]
        if strict:
            raise CheckpointError(f'{path} is of another model: {error}; {hint}') from None
        if not fitting:
            raise CheckpointError(f'{path} has nothing for this model: {error}; {hint}') from None
        print_log(f'{path} fills {len(fitting)} of {len(target)} parameters: {error}', logger='current')


def check_resumable(path: str) -> None:
    """Checks that a checkpoint holds what a run needs to go on.

    Raises:
        CheckpointError: It cannot be read, or holds weights alone.
    """
    content = read_file(path)
    missing = [key for key in ('meta', 'message_hub', 'optimizer') if key not in content]
    if missing:
        raise CheckpointError(
            f'--resume: {path} has no {", ".join(missing)}, so no run can go on from it; to begin a new run from its '
            f'weights, use --cfg-options load_from={path}'
        )


def _as_list(value: list | dict | None) -> list:
    return value if isinstance(value, list) else [value] if value else []
