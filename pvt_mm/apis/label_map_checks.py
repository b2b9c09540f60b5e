"""Checks of label maps before a run starts."""

import logging
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS, TRANSFORMS
from rich.console import Console
from rich.progress import track

from pvt_mm.apis.config import annotation_steps, as_list, leaf_datasets
from pvt_mm.apis.remembered import Remembered
from pvt_mm.datasets.classes import classes_of, differing_classes, has_own_classes
from pvt_mm.datasets.coco.files import upright_size
from pvt_mm.datasets.label_maps import Fault, LabelMaps, find_file_faults
from pvt_mm.utils.errors import InputError, config_errors
from pvt_mm.utils.text import shorten

WARNED = 'the label maps of the {split} data lack classes: tools/check_dataset.py lists them'


def predicts_only(dataset: dict, config: Config, split: str) -> bool:
    """Returns whether a test needs no ground truth: its evaluators only write, or its pipeline loads no annotations."""
    if split != 'test':
        return False
    evaluators = as_list(config.get('test_evaluator'))
    only_written = bool(evaluators) and all(evaluator.get('format_only') for evaluator in evaluators)
    return only_written or not annotation_steps(dataset)


def check_labels(dataset: dict, config: Config, split: str) -> None:
    """Checks the images and label maps of a data set of MMSegmentation; ADE20K's 22,000 take about a minute, once.

    Raises:
        InputError: Files are missing or left out, a label map cannot be read or does not fit its image, labels are not
            the classes, or the training data has other classes.
    """
    heads = as_list(config.model.get('module', config.model).get('decode_head'))
    if not heads or config.get('resume'):
        return
    with config_errors(f'the {split} data cannot be built'):
        built = DATASETS.build({**dataset, 'pipeline': [], 'lazy_init': True})
    if not hasattr(built, 'seg_map_suffix'):  # not MMSegmentation's
        return
    _check_classes(dataset, config, split)
    has_maps = not predicts_only(dataset, config, split) and bool(annotation_steps(dataset))
    with config_errors(f'the {split} data cannot be built'):
        faults = find_file_faults(built, built.load_data_list())
        _report((fault for fault in faults if has_maps or 'label map' not in fault.text), split)
        infos = [built.get_data_info(i) for i in range(len(built))]
    _warn_of_shared(infos, config, split)
    if has_maps:
        _check_maps([info for info in infos if 'seg_map_path' in info], dataset, config, split)


def _check_classes(dataset: dict, config: Config, split: str) -> None:
    for other in leaf_datasets(config.train_dataloader.dataset) if config.get('train_dataloader') else ():
        if difference := differing_classes(classes_of(other), classes_of(dataset), 'train', split):
            raise InputError(difference)


def _warn_of_shared(infos: list[dict], config: Config, split: str) -> None:
    """Warns if images are trained on and evaluated."""
    if split == 'train' or not config.get('train_dataloader'):
        return
    paths = {os.path.realpath(info['img_path']) for info in infos}
    for other in leaf_datasets(config.train_dataloader.dataset):
        with config_errors('the train data cannot be built'):
            trained = DATASETS.build({**other, 'pipeline': [], 'lazy_init': True})
            shared = paths & {os.path.realpath(info['img_path']) for info in trained.load_data_list()}
        if shared:
            text = f'{len(shared)} of {len(paths)} images of the {split} data are in the train data too, such as '
            _warn(f'{text}{min(shared)}: the results do not tell how the model does on others')


def _check_maps(infos: list[dict], dataset: dict, config: Config, split: str) -> None:
    head, step = as_list(config.model.get('module', config.model).get('decode_head'))[-1], annotation_steps(dataset)[0]
    names = classes_of(dataset)
    classes = names if len(names) == head.num_classes else head.num_classes
    ignored = head.get('ignore_index', 255)
    is_complete = split == 'train' and len([*leaf_datasets(config.train_dataloader.dataset)]) == 1
    files = [info[key] for info in infos for key in ('img_path', 'seg_map_path')]
    options = [[info['reduce_zero_label'], info['label_map']] for info in infos[:1]]
    settings = [classes, ignored, step, is_complete, options]
    root = dataset.get('data_root') or ''
    passed, warned = Remembered('labels', root, files, settings), Remembered('labels', root, files, [*settings, WARNED])
    if passed.has_passed():
        return
    if warned.has_passed():
        _warn(WARNED.format(split=split))
        return
    with config_errors(f'the {split} data cannot be built'):
        maps = LabelMaps(TRANSFORMS.build(step), classes, ignored, has_own_classes(dataset))
    task = f'checking the labels of the {split} data'
    with ThreadPoolExecutor() as threads:
        results = threads.map(lambda info: maps.check(info, upright_size(info['img_path']))[1], infos)
        shown = track(results, task, len(infos), console=Console(stderr=True), transient=True)
        faults = [fault for found in shown for fault in found]
    has_warned = _report([*faults, *maps.find_faults(is_complete)], split)
    (warned if has_warned else passed).record()


def _report(faults: Iterable[Fault], split: str) -> bool:
    """Raises an InputError of the first fault, with the number of its kind; else warns, and returns whether it did."""
    faults = list(faults)
    fatal = [fault for fault in faults if not fault.is_warning]
    if fatal:
        others = sum(fault.kind == fatal[0].kind for fault in fatal) - 1
        more = f' (so do {others} more)' if others else ''
        raise InputError(f'the {split} data: {fatal[0].text}{more}')
    for kind in dict.fromkeys(fault.kind for fault in faults):
        _warn(f'the {split} data: {shorten((fault.text for fault in faults if fault.kind == kind), 1)}')
    return bool(faults)


def _warn(text: str) -> None:
    print_log(text, 'current', logging.WARNING)
