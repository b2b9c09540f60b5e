"""A config on the user's own data: classes, heads, data sets, evaluators and the test part at once."""

import contextlib
import hashlib
import inspect
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.registry import DATASETS, MODELS

from pvt_mm.apis.config import SPLITS, annotation_steps, as_list, innermost_dataset, type_name
from pvt_mm.apis.ranks import on_first_rank
from pvt_mm.datasets.own_data import OwnData, find_data
from pvt_mm.datasets.own_data.data import RECIPES
from pvt_mm.datasets.own_data.tree import read_tree
from pvt_mm.utils.errors import InputError
from pvt_mm.utils.files import read_json, write_json

# What a config trains, by what its data is.
DETECTOR, SEGMENTOR, CLASSIFIER = 'a detector', 'a segmentor', 'a classifier'
MODELS_OF = dict(coco=DETECTOR, label_maps=SEGMENTOR, folders=CLASSIFIER)
DATA = dict(coco='boxes (COCO json files)', label_maps='label maps', folders='folders of classes')
TYPES = dict(coco='CocoDataset', label_maps='BaseSegDataset', folders='pvt_mm.ImageFolder')
# The metric to choose the best checkpoint by, and what the names of all metrics begin with.
MAIN_METRICS = dict(coco='coco/bbox_mAP', label_maps='mIoU', folders='accuracy/top1')
METRIC_NAMES = dict(coco=('coco/',), label_maps=('mIoU', 'mAcc', 'aAcc', 'mDice', 'mFscore'), folders=('accuracy/',))
# What stays of the settings of a config's data set.
KEPT = ('_scope_', 'pipeline', 'filter_cfg', 'test_mode', 'lazy_init', 'max_refetch', 'serialize_data', 'backend_args')
# Parts of a model whose classes are not those of the data.
WITHOUT_CLASSES = ('backbone', 'rpn_head')
RECORD = 'own_data.json'


def find_own_data(config: Config, name: str, paths: Sequence[str], resume: bool) -> OwnData:
    """Finds the user's data (``--data``) on the first rank, and returns it on all.

    Corrected annotations and the split go to ``data/`` in the work directory, as does a record of what was found. A
    resumed run keeps them, and warns if the user's files have changed. A new run needs a work directory of its own.

    Args:
        config: The config of the run, with its work directory.
        name: The config's path, for messages.
        paths: The folder, or the json files.
        resume: Whether the run resumes.

    Raises:
        InputError: There is no such data, it is wrong, is of another task than the config, a resumed run had other, or
            the work directory is that of another run.
    """
    task = task_of(config, name)
    kind = next(kind for kind, model in MODELS_OF.items() if model == task)

    def find() -> dict[str, Any]:
        out = Path(config.work_dir, 'data').absolute()
        made = [path for path in (out, *out.parents) if not path.exists()]
        try:
            data = _find_or_keep(config.work_dir, list(paths), kind, resume, predicts_masks(config))
            _check_task(config, data, name)
        except InputError:
            _remove(made)
            raise
        return asdict(data)

    found = on_first_rank(find)
    found['classes'] = tuple(found['classes'])
    return OwnData(**found)


def _remove(made: Sequence[Path]) -> None:
    """Removes the folder of corrected data and then those above it that are empty, if this run made them."""
    for folder in made[:1]:
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # it holds what others wrote meanwhile
        for folder in made[1:]:
            os.rmdir(folder)


def _find_or_keep(work_dir: str, paths: list[str], kind: str, resume: bool, masks: bool) -> OwnData:
    out = Path(work_dir, 'data')
    record = out / RECORD
    now = dict(paths=[os.path.abspath(path) for path in paths], files=_fingerprint(paths, work_dir))
    before = read_json(record)
    if not resume:
        _check_unused(work_dir, paths, before.get('paths', now['paths']) != now['paths'])
        before = {}
    if before and before['paths'] != now['paths']:
        raise InputError(
            f'--resume: this run trains on {" ".join(before["paths"])}, and --data is {" ".join(paths)}: give the same '
            'data, or start a new run in another --work-dir'
        )
    if before:
        if before['files'] != now['files']:
            print_log(
                f'the files of {" ".join(paths)} have changed since this run began: it goes on with the split and the '
                f'annotations in {out}; to train on what is there now, start a new run',
                level=30,
            )
        return OwnData(**before['data'])
    data = find_data(paths, out, kind=kind, masks=masks)
    write_json(record, {**now, 'data': asdict(data)})
    return data


def _check_unused(work_dir: str, paths: list[str], other_data: bool) -> None:
    """Raises an InputError if a new run would replace the config and the data of another."""
    names = ('last_checkpoint', 'epoch_*.pth', 'iter_*.pth', 'best_*.pth')
    checkpoints = any(path for name in names for path in Path(work_dir).glob(name))
    if checkpoints or other_data:
        what = 'checkpoints of another run' if checkpoints else 'a run on other data'
        hint = '' if other_data else 'add --resume to continue it, or '
        raise InputError(f'--data {" ".join(paths)}: {work_dir} has {what}: {hint}choose another --work-dir')


def _fingerprint(paths: Sequence[str], work_dir: str) -> str:
    """Returns a digest of the names and sizes of json files, and of the files in folders outside of the work directory.

    Hidden files are left out, as they are where data is found.
    """
    digest = hashlib.sha256()
    for path in map(Path, paths):
        for file in read_tree(path, without=Path(work_dir)).files if path.is_dir() else ('',):
            size = os.stat(path / file).st_size if os.path.exists(path / file) else -1
            digest.update(os.fsencode(f'{file} {size}\n'))
    return digest.hexdigest()


def task_of(config: Config, name: str) -> str:
    """Returns what a config trains: a detector, a segmentor or a classifier.

    Raises:
        InputError: None of them, or a model that needs more than ``--data`` gives.
    """
    scope, model = config.get('default_scope'), config.model
    if scope == 'mmseg' or 'decode_head' in model:
        return SEGMENTOR
    if scope != 'mmdet' and 'head' in model:
        return CLASSIFIER
    loader = config.get('train_dataloader')
    steps = annotation_steps(innermost_dataset(loader.dataset)) if loader else []
    stuff = any(part.get('num_stuff_classes') for _, part in parts_of(model, 'model'))
    if scope != 'mmdet' or stuff or any(step.get('with_seg') for step in steps):
        why = 'is panoptic, or trains on maps of stuff besides objects' if scope == 'mmdet' else 'is none of them'
        raise InputError(
            f'--data is for detectors, segmentors and classifiers, and {name} {why}: set its data sets by --cfg-options'
        )
    return DETECTOR


def use_data(config: Config, data: OwnData, name: str = 'the config') -> None:
    """Makes a config train, evaluate and test on the user's own data.

    It sets ``num_classes`` of every head, type, files and ``metainfo`` of all data sets, the evaluators, and the metric
    that hooks monitor. Pipelines, samplers and wrappers of data sets stay; of several data sets the first does.

    Args:
        config: The config, changed in place.
        data: The data.
        name: The config's path, for messages.

    Raises:
        InputError: The config is of another task than the data, or has no head or data set that could be set.
    """
    _check_task(config, data, name)
    if not config.get('train_dataloader'):
        raise InputError(f'--data: {name} has no train_dataloader')
    _set_classes(config, len(data.classes), name)
    for split in SPLITS:
        loader = config.get(f'{split}_dataloader')
        if loader:
            settings = data.splits[split if split in data.splits else 'val']
            loader.dataset = _on_data(loader.dataset, data, settings)
            if split != 'train':
                old = config.get(f'{split}_evaluator')
                config[f'{split}_evaluator'] = _evaluator(config, old, data, settings)
    for step in _steps([config.get('tta_pipeline'), *(config.get(f'{split}_dataloader') for split in SPLITS)]):
        if type_name(step) == 'LoadAnnotations':
            step.pop('reduce_zero_label', None)
    _monitor(config, data)
    config.pop('data_root', None)


def _check_task(config: Config, data: OwnData, name: str) -> None:
    task = task_of(config, name)
    if MODELS_OF[data.kind] != task:
        other = MODELS_OF[data.kind]
        raise InputError(
            f'{name} is {task}, and --data has {DATA[data.kind]}: use the config of {other}, such as '
            f'{RECIPES[data.kind]}'
        )
    if task == DETECTOR and predicts_masks(config) and not data.has_masks:
        raise InputError(
            f'{name} predicts masks, and not all objects of --data have one: use a detector of boxes, such as '
            f'{RECIPES[data.kind]}'
        )


def predicts_masks(config: Config) -> bool:
    """Returns whether a detector trains on masks."""
    return any(step.get('with_mask') for step in annotation_steps(innermost_dataset(config.train_dataloader.dataset)))


def class_settings(model: dict, where: str = 'model') -> Iterator[tuple[str, dict, str]]:
    """Yields the heads' settings of the number of classes: their names, the part that has each, and its key.

    These are ``num_classes`` (``num_things_classes``) wherever it is set, in lists too, and where a head takes it and
    has a default.
    """
    for place, part in parts_of(model, where):
        if set(WITHOUT_CLASSES) & set(place.split('.')):
            continue
        names = [key for key in ('num_classes', 'num_things_classes') if key in part]
        if not names and place.split('.')[-1].endswith('head') and _takes(part, 'num_classes'):
            names = ['num_classes']
        for key in names:
            yield f'{place}.{key}', part, key


def parts_of(config: Any, where: str) -> Iterator[tuple[str, dict]]:
    """Yields all dicts in a part of a config, in lists too, with their dotted names."""
    if isinstance(config, dict):
        yield where, config
    items = (
        config.items() if isinstance(config, dict) else enumerate(config if isinstance(config, (list, tuple)) else ())
    )
    for key, value in items:
        yield from parts_of(value, f'{where}.{key}')


def _takes(part: dict, argument: str) -> bool:
    kind = part.get('type')
    with MODELS.switch_scope_and_registry(None) as registry:
        kind = registry.get(kind) if isinstance(kind, str) else kind
    return inspect.isclass(kind) and any(
        argument in inspect.signature(base).parameters for base in kind.__mro__ if base is not object
    )


def _set_classes(config: Config, number: int, name: str) -> None:
    heads = list(class_settings(config.model))
    if not heads:
        raise InputError(f'--data: no head of {name} has num_classes: it predicts no classes')
    for _, part, key in heads:
        old, part[key] = part.get(key), number
        if part.get('out_channels') not in (None, 1) and part['out_channels'] == old:
            part['out_channels'] = number  # of MMSegmentation's decode heads
        for _, loss in parts_of({k: v for k, v in part.items() if k.startswith('loss')}, key):
            weights = loss.get('class_weight')
            if isinstance(weights, (list, tuple)) and len(weights) == (old or 0) + 1:
                loss['class_weight'] = [1.0] * number + [weights[-1]]  # the last is of no object
            elif isinstance(weights, (list, tuple)):
                loss.pop('class_weight')


def _on_data(dataset: dict, data: OwnData, settings: dict) -> dict:
    """Returns a data set's config on the user's data, inside of the same wrappers."""
    if 'dataset' in dataset:
        return ConfigDict({**dataset, 'dataset': _on_data(dataset['dataset'], data, settings)})
    if 'datasets' in dataset:
        return _on_data(dataset['datasets'][0], data, settings)
    metainfo = dict(classes=tuple(data.classes))
    if data.palette:
        metainfo['palette'] = [tuple(color) for color in data.palette]
    kept = {key: dataset[key] for key in KEPT if key in dataset}
    return ConfigDict({'type': TYPES[data.kind], **settings, 'metainfo': metainfo, **kept})


def _evaluator(config: Config, old: Any, data: OwnData, settings: dict) -> dict:
    """Returns the evaluator of a data set, with the other settings of the config's of the same type."""
    if data.kind == 'coco':
        new = dict(type='CocoMetric', ann_file=settings['ann_file'], format_only=False)
        new['metric'] = ['bbox', 'segm'] if predicts_masks(config) else 'bbox'
    elif data.kind == 'label_maps':
        new = dict(type='IoUMetric', format_only=False)
    else:
        new = dict(type='pvt_mm.Accuracy')
    same = next((metric for metric in as_list(old) if type_name(metric) == type_name(new)), {})
    kept = {key: value for key, value in same.items() if key not in ('outfile_prefix', 'output_dir', 'keep_results')}
    default = dict(iou_metrics=['mIoU']) if data.kind == 'label_maps' else {}
    return ConfigDict({**default, **kept, **new})


def _steps(config: Any) -> Iterator[dict]:
    """Yields the transforms in pipelines, nested ones too."""
    yield from (part for _, part in parts_of(config, '') if 'type' in part)


def _monitor(config: Config, data: OwnData) -> None:
    """Makes hooks that monitor a metric of other data monitor the main one of this data."""
    hooks = [*(config.get('default_hooks') or {}).values(), *(config.get('custom_hooks') or ())]
    for hook in hooks:
        for key in ('save_best', 'monitor'):
            names = as_list(hook.get(key)) if hook else []
            if names and any(name != 'auto' and not name.startswith(METRIC_NAMES[data.kind]) for name in names):
                hook[key] = MAIN_METRICS[data.kind]


def count_images(config: Config) -> int:
    """Returns the number of images that an epoch of training has, after the data set's filters."""
    dataset = config.train_dataloader.dataset
    with contextlib.redirect_stdout(None):  # pycocotools prints
        return on_first_rank(lambda: len(DATASETS.build(dataset)))
