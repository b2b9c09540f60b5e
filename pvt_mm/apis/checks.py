"""Checks of data, weights and checkpoints before a run starts."""

import contextlib
import hashlib
import json
import mmap
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import DATASETS, TRANSFORMS
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from pvt_mm.apis.config import leaf_datasets
from pvt_mm.apis.ranks import on_first_rank
from pvt_mm.checkpoint.formats import check_weights
from pvt_mm.checkpoint.integrity import assume_intact, identity
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
    check_paths(config, *splits)
    for split in splits:
        loader = config.get(f'{split}_dataloader')
        size = loader.get('batch_size', 1) if loader else 1
        if not isinstance(size, int) or size < 1:
            raise InputError(f'{split}_dataloader.batch_size is {size}: it must be at least 1')
        for dataset in leaf_datasets(loader.dataset) if loader else ():
            _check_pipeline(dataset, split)
            _check_folders(dataset, config, split)
            _check_annotations(dataset, split)
            _check_heads(dataset, config, split)
            _check_labels(dataset, config, split)


def check_paths(config: Config, *splits: str) -> None:
    """Checks that this machine has the files and folders of the data sets of the splits, or raises an InputError."""
    for split in splits:
        loader = config.get(f'{split}_dataloader')
        for dataset in leaf_datasets(loader.dataset) if loader else ():
            _check_paths(dataset, split)
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
            TRANSFORMS.build(step)


def _check_folders(dataset: dict, config: Config, split: str) -> None:
    """Checks that an ImageFolder has two classes, an image of each, and the classes of the training data if any."""
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


def _check_annotations(dataset: dict, split: str) -> None:
    """Checks that COCO annotations have the classes of the data set, and the masks that the pipeline loads."""
    ann_file = os.path.join(dataset.get('data_root') or '', dataset.get('ann_file') or '')
    if not ann_file.endswith('.json') or not os.path.isfile(ann_file):
        return
    classes = _classes(dataset)
    categories = coco_categories(ann_file) if classes else []
    missing = [name for name in classes if name not in categories]
    if missing:
        raise InputError(
            f'the {split} classes do not fit the annotations: {ann_file} has no {shorten(missing)}; its classes are '
            f'{shorten(categories, 10)}: set {split}_dataloader.dataset.metainfo.classes'
        )
    if any(step.get('with_mask') for step in _annotation_steps(dataset)):
        with open(ann_file, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            if text.find(b'"segmentation"') < 0:
                raise InputError(
                    f'the {split} annotations have no masks: {ann_file} has no "segmentation", which the pipeline '
                    'loads (with_mask=True); give annotations with masks, or train a detector without masks'
                )


def _check_heads(dataset: dict, config: Config, split: str) -> None:
    """Checks that the heads predict as many classes as the data set has."""
    classes = _classes(dataset)
    for where, number in _settings(config.model, 'model') if classes else ():
        of_a_head = where.endswith('.num_classes') and not {'backbone', 'rpn_head'} & set(where.split('.'))
        if of_a_head and number != len(classes):
            raise InputError(
                f'{where} is {number}, and the {split} data has {len(classes)} classes: they must be equal'
            )


def _check_labels(dataset: dict, config: Config, split: str) -> None:
    """Checks that label maps have no labels but the classes; ADE20K's 22,000 take about a minute, once."""
    heads = _as_list(config.model.get('module', config.model).get('decode_head'))
    steps = _annotation_steps(dataset)
    if not heads or not steps or config.get('resume'):
        return
    with config_errors(f'the {split} data cannot be built'):
        infos = [info for info in DATASETS.build({**dataset, 'pipeline': []}) if 'seg_map_path' in info]
        load = TRANSFORMS.build(steps[0])
    classes, ignored = heads[-1].num_classes, heads[-1].get('ignore_index', 255)
    checked = CheckedLabels(infos, (classes, ignored, steps[0]), dataset.get('data_root') or '')
    if checked.was_checked():
        return

    def greatest_label(info: dict) -> int:
        try:
            labels = load(dict(info))['gt_seg_map']
        except (OSError, ValueError, AssertionError) as error:
            raise InputError(f'the label map {info["seg_map_path"]} cannot be read: {error}') from error
        return labels[labels != ignored].max(initial=0).item()

    task = f'checking the labels of the {split} data'
    with ThreadPoolExecutor() as threads:
        maps = zip(infos, threads.map(greatest_label, infos), strict=True)
        for info, label in track(maps, task, len(infos), console=Console(stderr=True), transient=True):
            if label >= classes:
                reduced = ' after reduce_zero_label' if info['reduce_zero_label'] else ''
                threads.shutdown(wait=False, cancel_futures=True)
                raise InputError(
                    f'{info["seg_map_path"]} has the label {label}{reduced}, and the {classes} classes are 0 to '
                    f'{classes - 1}: fix the label map, or set num_classes and metainfo.classes'
                )
    checked.record()


class CheckedLabels:
    """Remembers label maps that were checked, by their paths, sizes and times of change, in the user's cache folder.

    That is ``$XDG_CACHE_HOME/pvt_mm``, or ``~/.cache/pvt_mm``; if it cannot be written, nothing is remembered. Nor are
    label maps that are not on this machine's disks.

    Args:
        infos: MMSegmentation's description of each image.
        settings: What else the outcome depends on.
        data_root: The folder of the data set, which has a file of its own in the cache.
    """

    def __init__(self, infos: list[dict], settings: tuple, data_root: str):
        cache = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
        root = hashlib.sha256(os.fsencode(os.path.abspath(data_root))).hexdigest()[:16]
        self.file = Path(cache, 'pvt_mm', f'checked_labels_{root}')
        digest = hashlib.sha256(repr(settings).encode())
        try:
            with ThreadPoolExecutor() as threads:
                states = threads.map(os.stat, [info['seg_map_path'] for info in infos])
                for info, state in zip(infos, states, strict=True):
                    digest.update(repr((sorted(info.items()), state.st_size, state.st_mtime_ns)).encode())
            self.digest = digest.hexdigest() if os.path.isabs(cache) else None
        except OSError:
            self.digest = None

    def was_checked(self) -> bool:
        """Returns whether they were checked before."""
        with contextlib.suppress(OSError, ValueError):
            return self.digest in self.file.read_text().split()
        return False

    def record(self) -> None:
        """Records that they are valid."""
        if self.digest is None:
            return
        with contextlib.suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with open(self.file, 'a') as records:
                records.write(f'{self.digest}\n')


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


def _settings(config: dict, where: str) -> Iterator[tuple[str, Any]]:
    """Yields the dotted name and the value of each setting in a part of a config."""
    for name, value in config.items():
        yield f'{where}.{name}', value
        if isinstance(value, dict):
            yield from _settings(value, f'{where}.{name}')


def _type_name(config: dict) -> str:
    """Returns the class name in a config, without its scope; ``type`` may be a class."""
    return getattr(config['type'], '__name__', config['type']).split('.')[-1]


def _as_list(value: list | dict | None) -> list:
    return value if isinstance(value, list) else [value] if value else []


def check_init_weights(config: Config) -> None:
    """Raises an InputError if weights to initialize the model from are missing, or torchvision, where it has them."""
    settings = [(where, value) for where, value in _settings(config.model, 'model') if where.endswith('.init_cfg')]
    for where, cfg in [(where, cfg) for where, value in settings for cfg in _as_list(value)]:
        if not isinstance(cfg, dict):
            raise InputError(
                f'{where} is {cfg!r}: it must be a dict; write --cfg-options {where}.type=Pretrained '
                f'{where}.checkpoint=PATH'
            )
        checkpoint = cfg['checkpoint'] if cfg.get('type') == 'Pretrained' else ''
        hint = f'or start from random weights with --cfg-options {where}=None'
        if checkpoint.startswith('torchvision://') and not find_spec('torchvision'):
            raise InputError(f'{where} names {checkpoint}, and torchvision is not installed: pip install it, {hint}')
        if checkpoint and '://' not in checkpoint and not os.path.isfile(checkpoint):
            raise InputError(f'{where} names {checkpoint}, which does not exist: put weights there, {hint}')


def check_pretrained(model: nn.Module) -> None:
    """Checks that the files in ``init_cfg`` fit their modules, as MMEngine loads whatever fits without an error.

    Modules of this package that load strictly, such as PVT, check that themselves and are skipped.

    Raises:
        CheckpointError: A file cannot be read, or contains less than half of the parameters.
    """
    for module in model.modules():
        cfg = getattr(module, 'init_cfg', None)
        path = cfg.get('checkpoint', '') if isinstance(cfg, dict) else ''
        loads_itself = getattr(getattr(type(module), 'init_weights', None), '__module__', '').startswith('pvt_mm.')
        if not os.path.isfile(path) or loads_itself:
            continue
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


def check_checkpoint(model: nn.Module, path: str, strict: bool) -> dict[str, Tensor]:
    """Returns the parameters in a checkpoint if they fit ``model``: all of them, or (not ``strict``) at least one.

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


def check_checkpoint_of_ranks(model: nn.Module, path: str, strict: bool) -> None:
    """Runs :func:`check_checkpoint` on the first rank; the others wait, and need not verify the file when they load it.

    Raises:
        CheckpointError: See there.
    """
    if '://' in path:  # the first rank of each machine downloads it, for which all must ask
        check_checkpoint(model, path, strict)
        return
    assume_intact(path, on_first_rank(_identity_of_checked, model, path, strict))


def _identity_of_checked(model: nn.Module, path: str, strict: bool) -> tuple[int, ...]:
    check_checkpoint(model, path, strict)
    return identity(path)


def _fitting(weights: dict[str, Tensor], target: dict[str, Tensor]) -> list[str]:
    """Returns the keys of ``target`` that ``weights`` has in the same shape."""
    return [key for key in target if key in weights and weights[key].shape == target[key].shape]


def check_resumable(path: str) -> None:
    """Raises a CheckpointError if a checkpoint cannot be read, or lacks what resuming a run needs besides weights."""
    content = read_file(path)
    missing = [key for key in ('meta', 'message_hub', 'optimizer') if key not in content]
    if missing:
        raise CheckpointError(
            f'--resume: {path} has no {shorten(missing)}, so no run can resume from it; to start a new run from its '
            f'weights, use --cfg-options load_from={path}'
        )
