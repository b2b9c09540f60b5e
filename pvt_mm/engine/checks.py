"""What can be wrong with a run, found before it starts."""

import functools
import itertools
import json
import mmap
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import DATASETS, TRANSFORMS
from rich.console import Console
from rich.progress import track
from torch import nn

from pvt_mm.checkpoint import CheckpointError, check_weights, read_checkpoint, read_file
from pvt_mm.datasets.image_folder import find_classes, find_images
from pvt_mm.errors import WRONG_CONFIG, InputError
from pvt_mm.models import PVT

LAYOUTS = {
    'CocoDataset': 'COCO is laid out as annotations/instances_{train,val}2017.json, train2017/*.jpg and val2017/*.jpg',
    'ADE20KDataset': 'ADE20K is laid out as {images,annotations}/{training,validation}/*.{jpg,png}',
    'ImageFolder': 'ImageNet is laid out as {train,val}/<class>/*.jpg',
}


def check_data(config: Config, *splits: str) -> None:
    """Checks that the data sets of the splits (``train``, ``val``, ``test``) are there and fit the model.

    Raises:
        InputError: A file or folder is missing (the message says how to lay the data out), a pipeline cannot be built,
            annotations lack a class that the config has or the masks that it loads, a label map has a value that is no
            class, or a head predicts another number of classes than there are.
    """
    for split in splits:
        loader = config.get(f'{split}_dataloader')
        size = loader.get('batch_size', 1) if loader else 1
        if not isinstance(size, int) or size < 1:
            raise InputError(f'{split}_dataloader.batch_size is {size}: it must be at least 1')
        for dataset in leaves(loader.dataset) if loader else ():
            _check_paths(dataset, split)
            _check_pipeline(dataset, split)
            _check_folders(dataset, config, split)
            _check_batches(dataset, config, split)
            _check_classes(dataset, config, split)
            _check_masks(dataset, split)
            _check_labels(dataset, config, split)
        for evaluator in _as_list(config.get(f'{split}_evaluator')):
            path = evaluator.get('ann_file')
            if path and not os.path.exists(path):
                raise InputError(f'{split}_evaluator.ann_file, {path}, does not exist')


def leaves(dataset: dict) -> Iterator[dict]:
    """Yields the data sets inside wrappers such as RepeatDataset and ConcatDataset."""
    inner = [dataset['dataset']] if 'dataset' in dataset else dataset.get('datasets')
    if inner is None:
        yield dataset
    else:
        for part in inner:
            yield from leaves(part)


def _check_paths(dataset: dict, split: str) -> None:
    root, prefix = dataset.get('data_root') or '', dataset.get('data_prefix') or {}
    names = [dataset.get('ann_file'), *(prefix.values() if isinstance(prefix, dict) else [prefix])]
    for name in names:
        path = os.path.join(root, name) if isinstance(name, str) else ''
        if path and '://' not in path and not os.path.exists(path):
            layout = LAYOUTS.get(dataset['type'].split('.')[-1], 'data_root, ann_file and data_prefix say what is read')
            raise InputError(
                f'the {split} data is not there: {path} does not exist. {layout}, below {root or "data_root"}; where '
                'it is elsewhere, add --cfg-options data_root=PATH'
            )


def _check_folders(dataset: dict, config: Config, split: str) -> None:
    """Checks that an ImageFolder has two classes, an image of each, and those of the training data where it is there.

    Only as much of a folder is listed as leads to an image.
    """
    folder = _image_folder(dataset)
    if folder is None:
        return
    classes = _classes(dataset)
    if len(classes) < 2:
        raise InputError(f'the {split} data has one class, {classes[0]}: {folder} must have a folder for each class')
    empty = [name for name in classes if not any(find_images(os.path.join(folder, name)))]
    if empty:
        raise InputError(f'the {split} data has no image of {_few(empty)}: fill the folder in {folder}, or remove it')
    for other in leaves(config.train_dataloader.dataset) if config.get('train_dataloader') else ():
        trained_on = _image_folder(other)
        if not trained_on or not any(Path(trained_on).glob('*/')):
            continue
        trained = _classes(other)
        for lacking, names in ((folder, set(trained) - set(classes)), (trained_on, set(classes) - set(trained))):
            if names:
                raise InputError(
                    f'the classes of the train and the {split} data differ: {lacking} has no {_few(sorted(names))}; '
                    'give both the same folders, or name the classes of both with metainfo.classes'
                )
        if trained != classes:
            raise InputError(
                f'metainfo.classes of the train and the {split} data are in different orders: write them alike'
            )


def _check_batches(dataset: dict, config: Config, split: str) -> None:
    """Checks that an ImageFolder fills a batch of every process, where the loader drops one that is not full."""
    folder, loader = _image_folder(dataset), config[f'{split}_dataloader']
    if folder is None or not loader.get('drop_last'):
        return
    counted = dict(pytorch='WORLD_SIZE', slurm='SLURM_NTASKS', mpi='OMPI_COMM_WORLD_SIZE')
    processes = int(os.environ.get(counted.get(config.get('launcher'), ''), 1))
    enough = (loader['batch_size'] - 1) * processes + 1
    found = (path for name in _classes(dataset) for path in find_images(os.path.join(folder, name)))
    images = sum(1 for _ in itertools.islice(found, enough))  # ImageNet's folders take long to list
    if isinstance(dataset.get('indices'), int):
        images = min(images, dataset['indices'])
    if images < enough:
        raise InputError(
            f'the {split} data has {images} images, which on {processes} process(es) fill no batch of '
            f'{loader["batch_size"]}: add --cfg-options {split}_dataloader.batch_size=N'
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
            raise InputError(
                f'{where} is {number}, and the {split} data has {len(classes)} classes: they must be as many'
            )


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
    """Checks that the label maps have no value but the classes' and the one to ignore.

    They are all read, by the first process, unless a run is resumed: ADE20K's 22,000 take about a minute on two cores.
    """
    heads = _as_list(config.model.get('module', config.model).get('decode_head'))
    steps = [step for step in dataset.get('pipeline') or () if step['type'].split('.')[-1] == 'LoadAnnotations']
    ranks = [os.environ[name] for name in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK') if name in os.environ]
    if not heads or not steps or config.get('resume') or any(rank != '0' for rank in ranks[:1]):
        return
    try:
        with DATASETS.switch_scope_and_registry(None) as registry:
            infos = [info for info in registry.build({**dataset, 'pipeline': []}) if 'seg_map_path' in info]
        with TRANSFORMS.switch_scope_and_registry(None) as registry:
            load = registry.build(steps[0])
    except WRONG_CONFIG as error:
        raise InputError(f'the {split} data cannot be built: {type(error).__name__}: {error}') from error
    classes, ignored = heads[-1].num_classes, heads[-1].get('ignore_index', 255)
    worst = functools.partial(_worst_label, load, ignored)
    task = f'checking the labels of the {split} data'
    with ThreadPoolExecutor() as threads:
        maps = zip(infos, threads.map(worst, infos), strict=True)
        for info, label in track(maps, task, len(infos), console=Console(stderr=True), transient=True):
            if label >= classes:
                reduced = ' once reduce_zero_label has taken 1 off' if info['reduce_zero_label'] else ''
                threads.shutdown(wait=False, cancel_futures=True)
                raise InputError(
                    f'{info["seg_map_path"]} has the label {label}{reduced}, and the {classes} classes are 0 to '
                    f'{classes - 1}: mend the label map, or set num_classes and metainfo.classes'
                )


def _worst_label(load: Callable[[dict], dict], ignored: int, info: dict) -> int:
    """Returns the greatest label of a map, as training will see it, but for the one to ignore.

    Raises:
        InputError: It is missing or damaged, or the pipeline and the data set disagree on what 0 means.
    """
    try:
        labels = load(dict(info))['gt_seg_map']
    except (OSError, ValueError, AssertionError) as error:
        raise InputError(f'the label map {info["seg_map_path"]} cannot be read: {error}') from error
    return labels[labels != ignored].max(initial=0).item()


def _check_pipeline(dataset: dict, split: str) -> None:
    """Checks that the pipeline's steps can be built, which MMEngine does only when training or testing starts."""
    for i, step in enumerate(dataset.get('pipeline') or ()):
        try:
            with TRANSFORMS.switch_scope_and_registry(None) as registry:
                registry.build(step)
        except WRONG_CONFIG as error:
            where = f'{split}_dataloader.dataset.pipeline.{i} ({step["type"]})'
            raise InputError(f'{where} cannot be built: {type(error).__name__}: {error}') from error


def check_init_weights(config: Config) -> None:
    """Checks that the weights that the model starts from are there.

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
    """Yields each checkpoint that a part of a model's config starts from, and the key of its ``init_cfg``."""
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


def _annotations(dataset: dict) -> str | None:
    """Returns the path of a data set's COCO annotations, None where there are none."""
    path = os.path.join(dataset.get('data_root') or '', dataset.get('ann_file') or '')
    return path if path.endswith('.json') and os.path.isfile(path) else None


def _image_folder(dataset: dict) -> str | None:
    """Returns the folder of an ImageFolder's classes, None for another data set."""
    kind = dataset['type']
    if getattr(kind, '__name__', kind).split('.')[-1] != 'ImageFolder':
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
            names = [category['name'] for category in categories]
            if not all(isinstance(name, str) for name in names):
                raise ValueError(f'its categories have names that are no text: {names[:5]}')
            return names
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f'{path} is no COCO annotation file: {error}') from None


def check_pretrained(model: nn.Module) -> None:
    """Checks that the files that other backbones than PVT start from fit them: those load what fits, in silence.

    Raises:
        CheckpointError: A file cannot be read, or fits less than half of the parameters.
    """
    for module in model.modules():
        cfg = getattr(module, 'init_cfg', None)
        path = cfg.get('checkpoint', '') if isinstance(cfg, dict) else ''
        if not isinstance(module, PVT) and os.path.isfile(path):
            prefix = f'{cfg["prefix"]}.' if cfg.get('prefix') else ''
            weights = {key.removeprefix(prefix): value for key, value in read_checkpoint(path).items()}
            target = module.state_dict()
            fitting = [key for key in target if key in weights and weights[key].shape == target[key].shape]
            if len(fitting) < len(target) / 2:
                absent = ', '.join([key for key in target if key not in fitting][:3])
                raise CheckpointError(
                    f'{path} fills {len(fitting)} of {len(target)} parameters of {type(module).__name__}: it has no '
                    f'{absent} of its shape; its own keys begin with {", ".join(list(weights)[:3])}'
                )


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


def _few(names: list[str]) -> str:
    return ', '.join(names[:5]) + (' …' if len(names) > 5 else '')
