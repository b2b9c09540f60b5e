"""A rehearsal of the evaluation: its metrics on a few images, with the ground truth as the predictions.

MMEngine computes metrics for the first time after an epoch. Here whatever fails then fails before the first step.
"""

import contextlib
import copy
import difflib
import io
import logging
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger, print_log
from mmengine.registry import DATASETS, HOOKS, METRICS
from pycocotools import mask as coco_masks

from pvt_mm.apis.config import as_list, type_name
from pvt_mm.datasets.image_io import report_unreadable_images
from pvt_mm.utils.errors import InputError, config_errors
from pvt_mm.utils.text import shorten

IMAGES = 8  # to rehearse with
COMPARED = 100  # objects of a class in an image that COCO's evaluation compares at most
SEARCHED = 500  # images to search at most for some with objects
# Metrics whose predictions are known, by the names of their classes.
COCO = 'mmdet.evaluation.metrics.coco_metric.CocoMetric'
FED = {
    COCO,
    'mmseg.evaluation.metrics.iou_metric.IoUMetric',
    'pvt_mm.evaluation.accuracy.Accuracy',
}
# What perfect predictions reach.
PERFECT = {'bbox_mAP': 1.0, 'segm_mAP': 1.0, 'mIoU': 100.0, 'aAcc': 100.0, 'top1': 100.0}
# Arguments of metrics that name files or folders which they write.
WRITTEN = ('outfile_prefix', 'output_dir', 'out_file_path', 'out_dir', 'collect_dir')
# Why a key that a metric asks for is missing.
LACKS = {
    'iscrowd': 'the annotations have no "iscrowd"; write "iscrowd": 0 into each',
    'area': 'the annotations have no "area"; write width times height, or the area of the mask, into each',
    'bbox': 'some annotations have no "bbox"',
    'segmentation': 'some annotations have no "segmentation"',
    'gt_sem_seg': 'the pipeline loads no label maps: add LoadAnnotations after Resize',
    'img_id': "the pipeline's last transform must keep it: add it to its meta_keys",
    'ori_shape': "the pipeline's last transform must keep it: add it to its meta_keys",
    'gt_label': 'the data has no labels',
}


def rehearse(config: Config, split: str = 'val') -> None:
    """Computes the metrics of a split on a few of its images with the ground truth as predictions, and drops them.

    What is fed is what a model would give: boxes of score 1 in pixels of the original image, masks, label maps, or the
    scores of a classifier. Nothing is written. Metrics that are not known, and data sets in wrappers, are left out with
    a line in the log. For ``val``, the names that hooks and schedules wait for are compared with those computed.

    Raises:
        InputError: The data is empty; a metric cannot be built or fails; perfect predictions score less than half of
            what they should; or ``save_best``, ``EarlyStoppingHook.monitor`` or the monitor of a ``ReduceOnPlateau...``
            is none of the metrics.
    """
    loader, evaluator = config.get(f'{split}_dataloader'), config.get(f'{split}_evaluator')
    if not loader or not evaluator:
        return
    metrics = _metric_configs(evaluator)
    if metrics is None or not {'dataset', 'datasets'}.isdisjoint(loader.dataset):
        _log(f'the {split} evaluation is not rehearsed: its evaluator or data set is a wrapper')
        return
    where = f'{split}_evaluator'
    with tempfile.TemporaryDirectory() as scratch, silence():
        built = [_build(metric, where, scratch) for metric in metrics]
        dataset, classes = _build_dataset(loader.dataset, split)
        known = [metric for metric in built if _names(metric) & FED]
        others = [metric for metric in built if metric not in known and not type(metric).__name__.startswith('Dump')]
        samples = _perfect_samples(dataset, classes, split) if known else []
        if not samples:
            others, known = [*others, *known], []
        computed, remarks = _compute(known, samples, dataset.metainfo, where)
    for remark in remarks:
        _log(remark, logging.WARNING)
    if others:
        _log(f'{where}: {shorten(type(metric).__name__ for metric in others)} cannot be rehearsed')
    if split == 'val' and type_name({'type': 'ValLoop', **(config.get('val_cfg') or {})}) == 'ValLoop':
        _check_monitors(config, computed, complete=not others)


def _log(text: str, level: int = logging.INFO) -> None:
    print_log(text, logger='current', level=level)


def _metric_configs(evaluator: Any) -> list[dict] | None:
    """Returns the configs of an evaluator's metrics, None if it is not MMEngine's, or built already."""
    if isinstance(evaluator, dict) and 'metrics' in evaluator:
        if type_name({'type': 'Evaluator', **evaluator}) != 'Evaluator':
            return None
        evaluator = evaluator['metrics']
    metrics = as_list(evaluator)
    return metrics if all(isinstance(metric, dict) for metric in metrics) else None


def _names(metric: BaseMetric) -> set[str]:
    """Returns the full names of a metric's class and its bases."""
    return {f'{kind.__module__}.{kind.__name__}' for kind in type(metric).__mro__}


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Hides what metrics print, log and warn of: figures of perfect predictions would confuse."""
    logger = MMLogger.get_current_instance()
    before, logger.disabled = logger.disabled, True
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.disabled = before


def _build(cfg: dict, where: str, scratch: str) -> BaseMetric:
    """Builds a metric that writes into the folder ``scratch``, if it writes."""
    with METRICS.switch_scope_and_registry(None) as registry:  # that of the default scope, such as mmdet
        kind = cfg.get('type')
        if kind is None or (isinstance(kind, str) and registry.get(kind) is None):
            near = difflib.get_close_matches(str(kind), [*registry.module_dict], n=1)
            hint = f'; did you mean {near[0]}?' if near else ''
            raise InputError(f'{where}.type is {kind!r}, which is no metric{hint}')
    elsewhere = {name: os.path.join(scratch, os.path.basename(cfg[name])) for name in WRITTEN if cfg.get(name)}
    with config_errors(f'{where} ({cfg["type"]}) cannot be built', RuntimeError):
        return METRICS.build({**cfg, **elsewhere})


def _build_dataset(cfg: dict, split: str) -> tuple[Any, Sequence[str]]:
    what = cfg.get('ann_file') or cfg.get('data_prefix')
    empty = f'the {split} data is empty: no image is in {what}; --no-validate trains without evaluation'
    try:
        with config_errors(f'the {split} data cannot be built'):
            dataset = DATASETS.build(cfg)
            if hasattr(dataset, 'full_init'):
                dataset.full_init()
    except InputError as error:
        if 'need at least one array to concatenate' not in str(error):  # MMEngine's, of no images
            raise
        raise InputError(empty) from error
    if len(dataset) == 0:
        raise InputError(empty)
    return dataset, dataset.metainfo.get('classes') or ()


def _perfect_samples(dataset: Any, classes: Sequence[str], split: str) -> list[dict]:
    """Returns what a perfect model would give the metrics for a few images, [] if samples are not MMEngine's."""
    samples = []
    for i in _choose(dataset):
        info = dataset.get_data_info(i)
        with config_errors(f'the {split} pipeline fails on {info.get("img_path")}'), report_unreadable_images():
            packed = dataset[i]
        sample = packed.get('data_samples') if isinstance(packed, dict) else None
        sample = sample[0] if isinstance(sample, (list, tuple)) else sample  # of the versions in test-time augmentation
        if not hasattr(sample, 'to_dict'):
            return []
        samples.append(_perfect_sample(info, sample.to_dict(), len(classes), split))
    return samples


def _choose(dataset: Any) -> list[int]:
    """Returns the indices of a few images, of those with objects where there are some, evenly spaced."""
    step = max(1, len(dataset) // SEARCHED)
    searched = [i for i in range(0, len(dataset), step) if dataset.get_data_info(i).get('instances', True)]
    searched = searched or [*range(len(dataset))]
    return searched[:: max(1, len(searched) // IMAGES)][:IMAGES]


def _perfect_sample(info: dict, sample: dict, classes: int, split: str) -> dict:
    if 'instances' in info:
        sample['pred_instances'] = _perfect_instances(info)
    if 'gt_label' in sample:
        label = sample['pred_label'] = sample['gt_label'].reshape(1)
        if not 0 <= int(label) < classes:
            raise InputError(f'{info.get("img_path")} of the {split} data has the label {int(label)} of {classes}')
        sample['pred_score'] = torch.eye(classes)[int(label)]
    if 'gt_sem_seg' in sample:
        truth, size = sample['gt_sem_seg']['data'], tuple(sample.get('ori_shape', ()))
        if size and truth.shape[-2:] != size:
            raise InputError(
                f'the {split} pipeline resizes label maps, from {size} to {tuple(truth.shape[-2:])}, and predictions '
                'have the size of the image: put LoadAnnotations after Resize'
            )
        sample['pred_sem_seg'] = {'data': torch.where(truth < classes, truth, torch.zeros_like(truth))}
    elif 'ori_shape' in sample:
        sample['pred_sem_seg'] = {'data': torch.zeros(1, *sample['ori_shape'], dtype=torch.long)}
    return sample


def _perfect_instances(info: dict) -> dict:
    """Returns the objects of an image as predictions: boxes (n, 4) in its pixels, and masks if all have them."""
    found = [instance for instance in info['instances'] if not instance.get('ignore_flag')]
    boxes = torch.tensor([instance['bbox'] for instance in found], dtype=torch.float64).reshape(-1, 4)
    labels = torch.tensor([instance['bbox_label'] for instance in found], dtype=torch.long)
    predicted = dict(bboxes=boxes, scores=torch.ones(len(found)), labels=labels)
    if all('mask' in instance for instance in found):
        with config_errors(f'the masks of {info.get("img_path")} cannot be read'):
            predicted['masks'] = [_encode(one['mask'], info['height'], info['width']) for one in found]
    return predicted


def _encode(mask: Any, height: int, width: int) -> dict:
    """Returns polygons or a run-length encoding of COCO as a compressed one."""
    if isinstance(mask, list):
        return coco_masks.merge(coco_masks.frPyObjects(mask, height, width))
    return coco_masks.frPyObjects(mask, height, width) if isinstance(mask['counts'], list) else dict(mask)


def _compute(metrics: list[BaseMetric], samples: list[dict], meta: dict, where: str) -> tuple[dict, list[str]]:
    """Returns the metrics by the names that hooks see, and remarks on those that are not perfect."""
    computed, remarks = {}, []
    for metric in metrics:
        metric.dataset_meta = meta
        name = type(metric).__name__
        is_coco = COCO in _names(metric)
        if is_coco and getattr(metric, '_coco_api', None) is not None:
            metric.img_ids = [sample['img_id'] for sample in samples if 'img_id' in sample]
        try:
            metric.process(None, copy.deepcopy(samples))
            results = metric.compute_metrics(metric.results)
        except Exception as error:  # a metric can fail in any way
            if f'{type(metric).__module__}.{name}' not in FED:  # it may ask for more than what is fed
                remarks.append(f'{where}: {name} cannot be rehearsed: {type(error).__name__}: {error}')
                continue
            raise InputError(f'the evaluation would fail: {where}, {name}: {_reason(error, metric)}') from error
        found = {f'{metric.prefix}/{key}' if metric.prefix else key: value for key, value in results.items()}
        if twice := sorted(found.keys() & computed.keys()):
            raise InputError(f'two metrics of {where} compute {shorten(twice)}: give one of them another prefix')
        computed |= found
        for key, value in results.items():
            if key in PERFECT and not value >= 0.99 * PERFECT[key] and not getattr(metric, 'nan_to_num', None):
                remarks += _remark(metric, samples, key, value, where)
    return computed, remarks


def _reason(error: Exception, metric: BaseMetric) -> str:
    """Returns why a metric fails, in words of the data."""
    text = f'{type(error).__name__}: {error}'
    if isinstance(error, KeyError) and error.args and error.args[0] in LACKS:
        return f'{text}: {LACKS[error.args[0]]}'
    if 'Results do not correspond to current coco set' in text:
        return 'its ann_file has not the images of the data: both must be the same file'
    if isinstance(error, IndexError) and COCO in _names(metric):
        return f'its ann_file has {len(metric.cat_ids or ())} of the {len(metric.dataset_meta["classes"])} classes'
    return text


def _remark(metric: BaseMetric, samples: list[dict], key: str, value: float, where: str) -> list[str]:
    """Returns a warning about a metric of perfect predictions, or raises an InputError if it is far off."""
    reasons, is_severe = [], value < PERFECT[key] / 2
    if getattr(metric, '_coco_api', None) is not None:
        truths = _truths(metric)
        if not truths:
            return [f'{where}: none of the searched images has an object, and {key} of such data is -1']
        unread = len(truths) - sum(len(sample['pred_instances']['labels']) for sample in samples)
        boxes = _boxes(samples)
        others = boxes - {(ann['image_id'], *np.round(ann['bbox'], 1)) for ann in truths}
        counts = Counter((ann['image_id'], ann['category_id']) for ann in truths)
        if max(counts.values()) > COMPARED:
            is_severe = False
            reasons.append(
                f'COCO compares {COMPARED} objects of a class in an image, and there are up to {max(counts.values())}'
            )
        if len(others) > len(boxes) / 2:
            is_severe, reasons = True, ['its ann_file has other objects than the data']
        elif unread > 0:
            reasons.append(
                f'{unread} of {len(truths)} objects of these images are not read by the data set, as their area is 0, '
                'ignore is set, or their box is empty or outside of the image'
            )
        if any(ann['id'] == 0 for ann in truths):
            is_severe = True
            reasons.append("the id of an annotation is 0, whose match COCO's evaluation takes for none: count from 1")
    why = ', and '.join(reasons) or 'its ground truth is not that of the data'
    text = f'{where}: perfect predictions on {len(samples)} images reach {key} {value:.3g} instead of {PERFECT[key]:g}'
    if is_severe:
        raise InputError(f'{text}: {why}; tools/check_dataset.py lists the faults of the data')
    return [f'{text}: {why}']


def _truths(metric: BaseMetric) -> list[dict]:
    """Returns the annotations that COCO's evaluation compares predictions with."""
    coco = metric._coco_api
    found = [ann for ann in coco.loadAnns(coco.getAnnIds(metric.img_ids)) if ann['category_id'] in metric.cat_ids]
    return [ann for ann in found if not ann.get('iscrowd') and not ann.get('ignore')]


def _boxes(samples: list[dict]) -> set[tuple]:
    """Returns the predicted boxes as COCO has them, with the ids of their images."""
    boxes = set()
    for sample in samples:
        corners = sample['pred_instances']['bboxes'].numpy()
        sizes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        boxes |= {(sample['img_id'], *box) for box in np.round(sizes, 1)}
    return boxes


def _check_monitors(config: Config, computed: dict, complete: bool) -> None:
    """Checks that hooks and schedules wait for metrics that are computed; if not all are known, what is found."""
    for where, name in _monitors(config):
        if name in computed:
            continue
        if not complete:
            _log(f'whether {where}, {name}, is computed is not known')
            continue
        if not computed:
            raise InputError(f'{where} is {name!r}, and the evaluation computes no metric: is format_only set?')
        same = [other for other in computed if other.split('/')[-1].lower() == name.split('/')[-1].lower()]
        near = same or difflib.get_close_matches(name, computed, n=1, cutoff=0.5)
        hint = f'did you mean {near[0]}?' if near else 'choose one of them'
        raise InputError(f'{where} is {name!r}, and the evaluation computes {shorten(computed, 12)}: {hint}')
    for where, cfg in _hooks(config):
        if 'auto' in _as_names(cfg.get('save_best')) and computed:
            first = next(iter(computed))
            with config_errors(f"{where}.save_best is 'auto', the first metric, {first}; set {where}.rule"):
                hook = HOOKS.build(cfg)
                hook._init_rule(hook.rules, [first])


def _as_names(value: str | Sequence[str] | None) -> list[str]:
    """Returns a setting that may be one name, several or None as a list."""
    return [value] if isinstance(value, str) else list(value or ())


def _hooks(config: Config) -> Iterator[tuple[str, dict]]:
    named = [(f'default_hooks.{name}', cfg) for name, cfg in (config.get('default_hooks') or {}).items()]
    more = [(f'custom_hooks.{i}', cfg) for i, cfg in enumerate(config.get('custom_hooks') or ())]
    for where, cfg in (*named, *more):
        if isinstance(cfg, dict) and 'type' in cfg:
            yield where, cfg


def _monitors(config: Config) -> Iterator[tuple[str, str]]:
    """Yields each setting that names a metric, and the metric."""
    for where, cfg in _hooks(config):
        for name in _as_names(cfg.get('save_best')):
            if name != 'auto':
                yield f'{where}.save_best', name
        if type_name(cfg) == 'EarlyStoppingHook' and 'monitor' in cfg:
            yield f'{where}.monitor', cfg['monitor']
    schedulers = config.get('param_scheduler') or []
    groups = schedulers if isinstance(schedulers, dict) and 'type' not in schedulers else {'': schedulers}
    for group, parts in groups.items():
        for i, cfg in enumerate(as_list(parts)):
            if isinstance(cfg, dict) and type_name(cfg).startswith('ReduceOnPlateau'):
                yield f'param_scheduler.{f"{group}." if group else ""}{i}.monitor', cfg.get('monitor', 'loss')
