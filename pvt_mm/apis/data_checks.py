"""Checks of the data of a config before a run starts."""

import os
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import TRANSFORMS

from pvt_mm.apis.channel_checks import check_channels
from pvt_mm.apis.coco_checks import check_annotations, predicts_only
from pvt_mm.apis.config import as_list, leaf_datasets, settings_in, type_name
from pvt_mm.apis.folder_checks import check_folders
from pvt_mm.apis.label_map_checks import check_labels
from pvt_mm.datasets.classes import classes_of, differing_classes, image_folder
from pvt_mm.datasets.own_data.tree import SPLIT_OF
from pvt_mm.utils.errors import InputError, config_errors
from pvt_mm.utils.text import shorten

LAYOUTS = {
    'CocoDataset': 'COCO is laid out as annotations/instances_{train,val}2017.json, train2017/*.jpg and val2017/*.jpg',
    'ADE20KDataset': 'ADE20K is laid out as {images,annotations}/{training,validation}/*.{jpg,png}',
    'ImageFolder': 'ImageNet is laid out as {train,val}/<class>/*.jpg',
}


def check_data(config: Config, *splits: str) -> None:
    """Checks that the data sets of the splits (``train``, ``val``, ``test``) exist and fit the model.

    Raises:
        InputError: A file or folder is missing (the message describes the layout), a pipeline cannot be built,
            annotations lack a class of the config or the masks that the pipeline loads, a label map contains a value
            outside of the classes, or a head predicts another number of classes than the data has, or other parts of
            the config another number of channels.
    """
    check_channels(config, *splits)
    check_paths(config, *splits)
    for split in splits:
        loader = config.get(f'{split}_dataloader')
        size = loader.get('batch_size', 1) if loader else 1
        if not isinstance(size, int) or size < 1:
            raise InputError(f'{split}_dataloader.batch_size is {size}: it must be at least 1')
        for dataset in leaf_datasets(loader.dataset) if loader else ():
            _check_pipeline(dataset, split)
            check_folders(dataset, split)
            _check_same_classes(dataset, config, split)
            check_annotations(dataset, config, split)
            _check_heads(dataset, config, split)
            check_labels(dataset, config, split)


def check_paths(config: Config, *splits: str) -> None:
    """Checks that this machine has the files and folders of the data sets of the splits, or raises an InputError."""
    for split in splits:
        loader = config.get(f'{split}_dataloader')
        for dataset in leaf_datasets(loader.dataset) if loader else ():
            _check_paths(dataset, config, split)
        for evaluator in as_list(config.get(f'{split}_evaluator')):
            path = evaluator.get('ann_file')
            if path and not os.path.exists(path):
                raise InputError(f'{split}_evaluator.ann_file, {path}, does not exist')


def _check_paths(dataset: dict, config: Config, split: str) -> None:
    root, prefix = dataset.get('data_root') or '', dataset.get('data_prefix') or {}
    if isinstance(prefix, dict) and predicts_only(config, split):
        prefix = {name: path for name, path in prefix.items() if name != 'seg_map_path'}
    names = [dataset.get('ann_file'), *(prefix.values() if isinstance(prefix, dict) else [prefix])]
    for name in names:
        path = os.path.join(root, name) if isinstance(name, str) else ''
        if path and '://' not in path and not os.path.exists(path):
            raise InputError(f'the {split} data is missing: {describe_missing(path, root, type_name(dataset))}')


def describe_missing(path: str, root: str, kind: str) -> str:
    """Returns that a path of a data set of a type does not exist, what is there instead, and what to do."""
    layout = LAYOUTS.get(kind)
    text = f'{path} does not exist' + (f'. {layout}, in {root or "data_root"}' if layout else '')
    if root and not os.path.isdir(root):
        return f'{text}; {_listed(os.path.dirname(os.path.abspath(root)))}: set data_root=PATH in --cfg-options'
    parent, name = os.path.split(os.path.abspath(path.rstrip('/')))
    names = [other for other, split in SPLIT_OF.items() if split == SPLIT_OF.get(name)]
    if same := next((other for other in names if os.path.isdir(os.path.join(parent, other))), None):
        return f'{text}, but {os.path.join(parent, same)} does: name it in data_prefix'
    folders = dict.fromkeys(map(os.path.abspath, (root, os.path.dirname(path.rstrip('/')))))
    there = '; '.join(_listed(folder) for folder in folders if os.path.isdir(folder))
    own = f', or train with --data {root or "FOLDER"}' if kind in LAYOUTS else ''
    return f'{text}; {there}: set data_root, ann_file and data_prefix of the data sets{own}'


def _listed(folder: str) -> str:
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    names = sorted(name for name in os.listdir(folder) if not name.startswith('.'))
    return f'{folder} has {shorten(names)}' if names else f'{folder} is empty'


def _check_pipeline(dataset: dict, split: str) -> None:
    """Checks that the transforms can be built, which MMEngine does only when training or testing starts."""
    for i, step in enumerate(dataset.get('pipeline') or ()):
        with config_errors(f'{split}_dataloader.dataset.pipeline.{i} ({step["type"]}) cannot be built'):
            TRANSFORMS.build(step)


def _check_heads(dataset: dict, config: Config, split: str) -> None:
    """Checks that the heads predict as many classes as the data set has."""
    classes = classes_of(dataset)
    for where, number in settings_in(config.model, 'model') if classes else ():
        parts = where.split('.')  # the semantic_head of an HTC predicts stuff
        of_a_head = parts[-1] == 'num_classes' and not {'backbone', 'rpn_head', 'semantic_head'} & {*parts}
        if of_a_head and number != len(classes):
            raise InputError(
                f'{where} is {number}, and the {split} data has {len(classes)} classes: they must be equal'
            )


def _check_same_classes(dataset: dict, config: Config, split: str) -> None:
    """Checks that a data set has the classes of the training data, if there is any, in their order.

    A test may be on other data than the training of the same config, except where folders number the classes.
    """
    for other in leaf_datasets(config.train_dataloader.dataset) if config.get('train_dataloader') else ():
        folder = image_folder(other)
        if split == 'test' and folder is None:
            continue
        if type_name(other) != type_name(dataset):
            continue
        if folder is not None and not any(entry.is_dir() for entry in Path(folder).glob('*')):
            continue
        if difference := differing_classes(classes_of(other), classes_of(dataset), 'train', split):
            raise InputError(difference)
