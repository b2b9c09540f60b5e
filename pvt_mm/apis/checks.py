"""Checks of data, weights and checkpoints before a run starts."""

import functools
import json
import mmap
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import DATASETS, TRANSFORMS, Registry
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from pvt_mm.apis.config import leaf_datasets
from pvt_mm.checkpoint.formats import check_weights
from pvt_mm.checkpoint.reader import read_checkpoint, read_file
from pvt_mm.datasets.image_folder import find_classes, find_images
from pvt_mm.utils.errors import CheckpointError, InputError, config_errors
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
            outside of the classes, or a head predicts another number of classes than the data has.
    """
    for split in splits:
        loader = config.get(f'{split}_dataloader')
        size = loader.get('batch_size', 1) if loader else 1
        if not isinstance(size, int) or size < 1:
            raise InputError(f'{split}_dataloader.batch_size is {size}: it must be at least 1')
        for dataset in leaf_datasets(loader.dataset) if loader else ():
            _check_paths(dataset, split)
            _check_pipeline(dataset, split)
            _check_folders(dataset, config, split)
            _check_classes(dataset, config, split)
            _check_masks(dataset, split)
            _check_labels(dataset, config, split)
        for evaluator in _as_list(config.get(f'{split}_evaluator')):
            path = evaluator.get('ann_file')
            if path and not os.path.exists(path):
                raise InputError(f'{split}_evaluator.ann_file, {path}, does not exist')


def _check_paths(dataset: dict, split: str) -> None:
    root, prefix = dataset.get('data_root') or '', dataset.get('data_prefix') or {}
    names = [dataset.get('ann_file'), *(prefix.values() if isinstance(prefix, dict) else [prefix])]
    for name in names:
        path = os.path.join(root, name) if isinstance(name, str) else ''
        if path and '://' not in path and not os.path.exists(path):
            layout = LAYOUTS.get(_type_name(dataset), 'set data_root, ann_file and data_prefix')
            raise InputError(
                f'the {split} data is missing: {path} does not exist. {layout}, in {root or "data_root"}; if it is '
                'elsewhere, add --cfg-options data_root=PATH'
            )


def _check_pipeline(dataset: dict, split: str) -> None:
    """Checks that the transforms can be built, which MMEngine does only when training or testing starts."""
    for i, step in enumerate(dataset.get('pipeline') or ()):
        with config_errors(f'{split}_dataloader.dataset.pipeline.{i} ({step["type"]}) cannot be built'):
            _build(TRANSFORMS, step)


def _check_folders(dataset: dict, config: Config, split: str) -> None:
    """Checks that an ImageFolder has two classes, an image of each, and the classes of the training data if it exists.

    Each folder is listed only up to its first image.
    """
    folder = _image_folder(dataset)
    if folder is None:
        return
    classes = _classes(dataset)
    if len(classes) < 2:
        raise InputError(f'the {split} data has one class, {classes[0]}: {folder} must have a folder for each class')
    empty = [name for name in classes if not any(find_images(os.path.join(folder, name)))]
    if empty:
        raise InputError(
            f'the {split} data has no image of {shorten(empty)}: fill the folder in {folder}, or remove it'
        )
    for other in leaf_datasets(config.train_dataloader.dataset) if config.get('train_dataloader') else ():
        trained_on = _image_folder(other)
        if not trained_on or not any(Path(trained_on).glob('*/')):
            continue
        trained = _classes(other)
        for lacking, names in ((folder, set(trained) - set(classes)), (trained_on, set(classes) - set(trained))):
            if names:
                raise InputError(
                    f'the classes of the train and the {split} data differ: {lacking} has no {shorten(sorted(names))}; '
                    'give both the same folders, or name the classes of both with metainfo.classes'
                )
        if trained != classes:
            raise InputError(f'metainfo.classes of the train and the {split} data differ in order: write them alike')


def _check_classes(dataset: dict, config: Config, split: str) -> None:
    """Checks that COCO annotations have the classes of the data set, and that the heads predict as many."""
    classes = _classes(dataset)
    if not classes:
        return
    ann_file = _annotations(dataset)
    if ann_file:
        categories = coco_categories(ann_file)
        missing = [name for name in classes if name not in categories]
        if missing:
            raise InputError(
                f'the {split} classes do not fit the annotations: {ann_file} has no {shorten(missing)}; its classes '
                f'are {shorten(categories, 10)}: set {split}_dataloader.dataset.metainfo.classes'
            )
    for where, number in _head_classes(config.model, 'model'):
        if number != len(classes):
            raise InputError(
                f'{where} is {number}, and the {split} data has {len(classes)} classes: they must be equal'
            )


def _check_masks(dataset: dict, split: str) -> None:
    """Checks that COCO annotations have the masks that the pipeline loads."""
    ann_file = _annotations(dataset)
    if not ann_file or not any(step.get('with_mask') for step in _annotation_steps(dataset)):
        return
    with open(ann_file, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        if text.find(b'"segmentation"') < 0:
            raise InputError(
                f'the {split} annotations have no masks: {ann_file} has no "segmentation", which the pipeline loads '
                '(with_mask=True); give annotations with masks, or train a detector without masks'
            )


def _check_labels(dataset: dict, config: Config, split: str) -> None:
    """Checks that label maps contain only the classes and the label to ignore.

    The first rank reads all of them, unless a run is resumed: ADE20K's 22,000 take about a minute on two cores.
    """
    heads = _as_list(config.model.get('module', config.model).get('decode_head'))
    steps = _annotation_steps(dataset)
    ranks = [os.environ[name] for name in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK') if name in os.environ]
    if not heads or not steps or config.get('resume') or any(rank != '0' for rank in ranks[:1]):
        return
    with config_errors(f'the {split} data cannot be built'):
        infos = [info for info in _build(DATASETS, {**dataset, 'pipeline': []}) if 'seg_map_path' in info]
        load = _build(TRANSFORMS, steps[0])
    classes, ignored = heads[-1].num_classes, heads[-1].get('ignore_index', 255)
    greatest = functools.partial(_greatest_label, load, ignored)
    task = f'checking the labels of the {split} data'
    with ThreadPoolExecutor() as threads:
        maps = zip(infos, threads.map(greatest, infos), strict=True)
        for info, label in track(maps, task, len(infos), console=Console(stderr=True), transient=True):
            if label >= classes:
                reduced = ' after reduce_zero_label' if info['reduce_zero_label'] else ''
                threads.shutdown(wait=False, cancel_futures=True)
                raise InputError(
                    f'{info["seg_map_path"]} has the label {label}{reduced}, and the {classes} classes are 0 to '
                    f'{classes - 1}: fix the label map, or set num_classes and metainfo.classes'
                )


def _greatest_label(load: Callable[[dict], dict], ignored: int, info: dict) -> int:
    """Returns the greatest label of a label map, as training sees it, except the label to ignore.

    Raises:
        InputError: The file cannot be read, or the pipeline and the data set disagree on ``reduce_zero_label``.
    """
    try:
        labels = load(dict(info))['gt_seg_map']
    except (OSError, ValueError, AssertionError) as error:
        raise InputError(f'the label map {info["seg_map_path"]} cannot be read: {error}') from error
    return labels[labels != ignored].max(initial=0).item()


def coco_categories(path: str) -> list[str]:
    """Returns the names of the categories in a COCO annotation file, reading only that part of it.

    Raises:
        InputError: The file is not a COCO annotation file.
    """
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


def _annotations(dataset: dict) -> str | None:
    """Returns the path of a data set's COCO annotations, or None if there are none."""
    path = os.path.join(dataset.get('data_root') or '', dataset.get('ann_file') or '')
    return path if path.endswith('.json') and os.path.isfile(path) else None


def _annotation_steps(dataset: dict) -> list[dict]:
    return [step for step in dataset.get('pipeline') or () if _type_name(step) == 'LoadAnnotations']


def _image_folder(dataset: dict) -> str | None:
    """Returns the folder of an ImageFolder's classes, or None for another data set."""
    if _type_name(dataset) != 'ImageFolder':
        return None
    prefix = dataset.get('data_prefix') or ''
    return os.path.join(dataset.get('data_root') or '', prefix['img_path'] if isinstance(prefix, dict) else prefix)


def _classes(dataset: dict) -> list[str]:
    given = (dataset.get('metainfo') or {}).get('classes')
    if isinstance(given, str):
        raise InputError(f'metainfo.classes is the string {given!r}: write a tuple, ({given!r},) for one class')
    folder = _image_folder(dataset)
    if folder is not None:
        return list(find_classes(folder, given))
    if given is None:
        with DATASETS.switch_scope_and_registry(None) as registry:  # that of the default scope, such as mmdet
            given = getattr(registry.get(dataset['type']), 'METAINFO', {}).get('classes')
    return list(given or ())


def _head_classes(config: dict, where: str) -> Iterator[tuple[str, int]]:
    """Yields the key and value of each ``num_classes`` of the heads in a model's config."""
    for name, part in config.items():
        if name == 'num_classes':
            yield f'{where}.num_classes', part
        elif name not in ('backbone', 'rpn_head') and isinstance(part, dict):
            yield from _head_classes(part, f'{where}.{name}')


def _build(registry: Registry, config: dict) -> Any:
    """Builds a data set or transform by the registry of the default scope, such as mmdet's."""
    with registry.switch_scope_and_registry(None) as scoped:
        return scoped.build(config)


def _type_name(config: dict) -> str:
    """Returns the class name in a config, without its scope; ``type`` may be a class."""
    return getattr(config['type'], '__name__', config['type']).split('.')[-1]


def _as_list(value: list | dict | None) -> list:
    return value if isinstance(value, list) else [value] if value else []


def check_init_weights(config: Config) -> None:
    """Checks that the checkpoints that the model is initialized from exist.

    Raises:
        InputError: A file does not exist, or torchvision's weights are named where torchvision is not installed.
    """
    for where, checkpoint in _init_checkpoints(config.model, 'model'):
        hint = f'or start from random weights with --cfg-options {where}=None'
        if checkpoint.startswith('torchvision://') and not find_spec('torchvision'):
            raise InputError(f'{where} names {checkpoint}, and torchvision is not installed: pip install it, {hint}')
        if '://' not in checkpoint and not os.path.isfile(checkpoint):
            raise InputError(f'{where} names {checkpoint}, which does not exist: put weights there, {hint}')


def _init_checkpoints(config: dict, where: str) -> Iterator[tuple[str, str]]:
    """Yields the key of each pretrained ``init_cfg`` in a model's config, and its checkpoint."""
    for name, part in config.items():
        if name == 'init_cfg':
            for cfg in _as_list(part):
                if not isinstance(cfg, dict):
                    raise InputError(
                        f'{where}.init_cfg is {cfg!r}: it must be a dict; write --cfg-options '
                        f'{where}.init_cfg.type=Pretrained {where}.init_cfg.checkpoint=PATH'
                    )
                if cfg.get('type') == 'Pretrained':
                    yield f'{where}.{name}', cfg['checkpoint']
        elif isinstance(part, dict):
            yield from _init_checkpoints(part, f'{where}.{name}')


def check_pretrained(model: nn.Module) -> None:
    """Checks that the files in ``init_cfg`` fit their modules, as MMEngine loads whatever fits without an error.

    Modules of this package that load strictly, such as PVT, check that themselves and are skipped.

    Raises:
        CheckpointError: A file cannot be read, or contains less than half of the parameters.
    """
    for module in model.modules():
        cfg = getattr(module, 'init_cfg', None)
        path = cfg.get('checkpoint', '') if isinstance(cfg, dict) else ''
        if os.path.isfile(path) and not _is_ours(module):
            prefix = f'{cfg["prefix"]}.' if cfg.get('prefix') else ''
            weights = {key.removeprefix(prefix): value for key, value in read_checkpoint(path).items()}
            target = module.state_dict()
            fitting = _fitting(weights, target)
            if len(fitting) < len(target) / 2:
                absent = [key for key in target if key not in fitting]
                raise CheckpointError(
                    f'{path} fills {len(fitting)} of {len(target)} parameters of {type(module).__name__}: it has no '
                    f'{shorten(absent, 3)} of that shape; its keys are {shorten(weights, 3)}'
                )


def _is_ours(module: nn.Module) -> bool:
    return getattr(getattr(type(module), 'init_weights', None), '__module__', '').startswith('pvt_mm.')


def check_checkpoint(model: nn.Module, path: str, strict: bool) -> dict[str, Tensor]:
    """Reads a checkpoint and checks that it fits ``model``: all of it, or (not ``strict``) at least one parameter.

    Returns:
        The parameters in the checkpoint, without the prefix of a model wrapper.

    Raises:
        CheckpointError: It cannot be read; or a key is missing, unknown or misshapen; or (not strict) nothing fits.
    """
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    weights = {key.removeprefix('module.'): value for key, value in read_checkpoint(path).items()}
    target = model.state_dict()
    try:
        check_weights(weights, target)
    except CheckpointError as error:
        hint = 'tools/convert_checkpoint.py turns weights of other PVT implementations into ours'
        fitting = _fitting(weights, target)
        if strict:
            raise CheckpointError(f'{path} is of another model: {error}; {hint}') from None
        if not fitting:
            raise CheckpointError(f'{path} has nothing for this model: {error}; {hint}') from None
        print_log(f'{path} fills {len(fitting)} of {len(target)} parameters: {error}', logger='current')
    return weights


def _fitting(weights: dict[str, Tensor], target: dict[str, Tensor]) -> list[str]:
    """Returns the keys of ``target`` that ``weights`` has in the same shape."""
    return [key for key in target if key in weights and weights[key].shape == target[key].shape]


def check_resumable(path: str) -> None:
    """Checks that a checkpoint contains what resuming a run needs.

    Raises:
        CheckpointError: It cannot be read, or contains only weights.
    """
    content = read_file(path)
    missing = [key for key in ('meta', 'message_hub', 'optimizer') if key not in content]
    if missing:
        raise CheckpointError(
            f'--resume: {path} has no {shorten(missing)}, so no run can resume from it; to start a new run from its '
            f'weights, use --cfg-options load_from={path}'
        )
