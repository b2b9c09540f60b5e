"""Checks of label maps before a run starts."""

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor

from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS
from rich.console import Console
from rich.progress import track

from pvt_mm.apis.coco_checks import predicts_only
from pvt_mm.apis.config import annotation_steps, as_list, leaf_datasets
from pvt_mm.apis.faults import report, warn
from pvt_mm.apis.remembered import Remembered
from pvt_mm.datasets.classes import classes_of, has_own_classes
from pvt_mm.datasets.coco.files import upright_size
from pvt_mm.datasets.label_maps import LabelMaps, find_file_faults
from pvt_mm.utils.errors import config_errors

WARNED = 'the label maps of the {split} data lack classes: tools/check_dataset.py lists them'


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
    has_maps = not predicts_only(config, split) and bool(annotation_steps(dataset))
    with config_errors(f'the {split} data cannot be built'):
        listed = built.load_data_list()
    report(find_file_faults(built, listed, has_maps), split)
    with config_errors(f'the {split} data cannot be built'):
        built.full_init()
        infos = [built.get_data_info(i) for i in range(len(built))]
    _warn_of_shared(infos, config, split)
    if has_maps:
        _check_maps([info for info in infos if 'seg_map_path' in info], dataset, config, split)


def _warn_of_shared(infos: list[dict], config: Config, split: str) -> None:
    """Warns if images are trained on and evaluated."""
    if split == 'train' or not config.get('train_dataloader'):
        return
    paths = {os.path.realpath(info['img_path']) for info in infos}
    for other in leaf_datasets(config.train_dataloader.dataset):
        shared = set()
        with contextlib.suppress(OSError, AssertionError):  # where a model is tested, its training data may be absent
            trained = DATASETS.build({**other, 'pipeline': [], 'lazy_init': True})
            shared = paths & {os.path.realpath(info['img_path']) for info in trained.load_data_list()}
        if shared:
            text = f'{len(shared)} of {len(paths)} images of the {split} data are in the train data too, such as '
            warn(f'{text}{min(shared)}: the results do not tell how the model does on others')


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
        warn(WARNED.format(split=split))
        return
    with config_errors(f'the {split} data cannot be built'):
        maps = LabelMaps(TRANSFORMS.build(step), classes, ignored, has_own_classes(dataset))
    task = f'checking the labels of the {split} data'
    with ThreadPoolExecutor() as threads:
        results = threads.map(lambda info: maps.check(info, upright_size(info['img_path']))[1], infos)
        shown = track(results, task, len(infos), console=Console(stderr=True), transient=True)
        faults = [fault for found in shown for fault in found]
    has_warned = report([*faults, *maps.find_faults(is_complete)], split)
    (warned if has_warned else passed).record()
