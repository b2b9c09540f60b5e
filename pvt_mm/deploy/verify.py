"""Whether an exported model predicts what PyTorch does: on images of several sizes and batches, and by its metric."""

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, init_default_scope
from mmengine.structures import InstanceData, PixelData
from rich.console import Console
from rich.progress import track
from torch import nn

from pvt_mm.apis.config import as_list
from pvt_mm.apis.inference import image_steps, run_steps
from pvt_mm.apis.rehearsal import silence
from pvt_mm.datasets.image_io import report_unreadable_images
from pvt_mm.serving.images import read_image
from pvt_mm.serving.model import DETECTION, OnnxModel

# What a float32 file must reach.
BOX_PX, SCORE, MASK_IOU, PIXELS, MISSING = 0.5, 1e-3, 0.99, 0.999, 0.005
POINTS = 0.1  # of its metric, by which PyTorch and onnxruntime may differ
PARTS = ((1.0, 1.0), (0.6, 1.0), (1.0, 0.6))  # of the height and the width of an image: three sizes
METRICS = ('coco/bbox_mAP', 'coco/segm_mAP', 'mIoU', 'accuracy/top1')


@dataclass
class Agreement:
    """How far onnxruntime's predictions are from PyTorch's, over all images, sizes and batches."""

    images: int = 0  # predictions that were compared, of a whole image or a part of it
    objects: int = 0  # of PyTorch
    missing: int = 0  # of them, without a match of the same label
    extra: int = 0  # of onnxruntime, likewise
    box_px: float = 0.0  # largest difference of a coordinate, in pixels of the original image
    score: float = 0.0  # largest difference of a score
    mask_iou: float = 1.0  # smallest intersection over union of two masks
    pixels: float = 1.0  # smallest share of the pixels of an image that have the same label

    def add(self, expected: dict[str, np.ndarray], found: dict[str, np.ndarray], cut: float = 0.0) -> None:
        """Adds an image. Objects with a score within 1e-3 of ``cut``, below which they are dropped, may be missing."""
        self.images += 1
        if 'boxes' in expected:
            self._add_objects(expected, found, cut)
        elif 'labels' in expected:
            self.objects += 1
            self.pixels = min(self.pixels, (expected['labels'] == found['labels']).mean().item())
        else:
            self.objects += 1
            self.score = _worse(self.score, expected['scores'] - found['scores'])

    def _add_objects(self, expected: dict[str, np.ndarray], found: dict[str, np.ndarray], cut: float) -> None:
        free = np.ones(len(found['scores']), bool)
        for i in np.flatnonzero(expected['scores'] > cut + SCORE):
            self.objects += 1
            others = np.flatnonzero(free & (found['labels'] == expected['labels'][i]))
            others = others[_overlaps(expected['boxes'][i], found['boxes'][others]) > 0.9]
            if not len(others):
                self.missing += 1
                continue
            distances = np.abs(found['boxes'][others] - expected['boxes'][i]).max(1) / BOX_PX
            distances += np.abs(found['scores'][others] - expected['scores'][i]) / SCORE
            j = others[distances.argmin()]
            free[j] = False
            self.box_px = _worse(self.box_px, found['boxes'][j] - expected['boxes'][i])
            self.score = _worse(self.score, found['scores'][j] - expected['scores'][i])
            if 'masks' in expected:
                mine, other = expected['masks'][i], found['masks'][j]
                if (mine != other).sum() > 1:  # a pixel is much of a small mask
                    self.mask_iou = min(self.mask_iou, int((mine & other).sum()) / int((mine | other).sum()))
        self.extra += int((free & (found['scores'] > cut + SCORE)).sum())

    @property
    def holds(self) -> bool:
        """Whether the differences are those of rounding."""
        few = max(self.missing, self.extra) <= MISSING * self.objects
        near = self.box_px <= BOX_PX and self.score <= SCORE
        return self.objects > 0 and few and near and self.mask_iou >= MASK_IOU and self.pixels >= PIXELS

    def __str__(self) -> str:
        found = [f'{self.objects} predictions of PyTorch on {self.images} images']
        found += [f'{self.missing} missing'] if self.missing else []
        found += [f'{self.extra} more'] if self.extra else []
        found += [f'boxes within {self.box_px:.2g} px'] if self.box_px else []
        found += [f'scores within {self.score:.1e}'] if self.score else []
        found += [f'IoU of masks at least {self.mask_iou:.4f}'] if self.mask_iou < 1 else []
        found += [f'at least {self.pixels:.2%} of the pixels alike'] if self.pixels < 1 else []
        return ', '.join(found)

    def summary(self) -> dict:
        """Returns the figures, for JSON."""
        return {name: float(f'{value:.4g}') for name, value in asdict(self).items()} | {'holds': self.holds}


def _worse(worst: float, difference: np.ndarray) -> float:
    return float(np.maximum(worst, np.abs(difference).max(initial=0)))  # unlike `max`, it keeps NaN


def _overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Returns the intersection over union of a box (4,) with boxes (N, 4); 1 for the same box without area."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    both = sides.clip(0).prod(1)
    area, areas = (box[2:] - box[:2]).prod(), (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return np.where(np.abs(box - boxes).max(1, initial=0) < BOX_PX, 1.0, both / np.maximum(area + areas - both, 1e-9))


def compare(model: nn.Module, config: Config, exported: OnnxModel, paths: Sequence[str]) -> Agreement:
    """Compares PyTorch with onnxruntime on image files: three sizes of each, alone and with its mirror image.

    Args:
        model: The model of ``config`` that was exported, in eval mode.
        config: Its test pipeline prepares images for PyTorch.
        exported: The file, which prepares them by itself.
        paths: Image files.
    """
    init_default_scope(config.get('default_scope', 'mmengine'))
    steps, agreement, cut = image_steps(config), Agreement(), score_threshold(model)
    bar = dict(console=Console(stderr=True), transient=True)
    for path in track(paths, 'comparing with PyTorch', **bar):
        image = read_image(path, exported.channels)
        sides = [(max(round(h * image.shape[0]), 1), max(round(w * image.shape[1]), 1)) for h, w in PARTS]
        parts = [image[:height, :width] for height, width in sides]
        batches = [batch for part in parts for batch in ([part], [part, part[:, ::-1]])]
        if exported.task in DETECTION and not exported.preprocesses:  # a batch of any sizes
            batches.append(parts)
        for batch in batches:
            for expected, found in zip(predict(model, steps, batch), exported.run(batch), strict=True):
                agreement.add(expected, found, cut)
    return agreement


def score_threshold(model: nn.Module) -> float:
    """Returns the score below which a detector drops objects, 0 of other models."""
    settings = getattr(model, 'test_cfg', None) or {}
    return float(settings.get('rcnn', settings).get('score_thr', 0) or 0)


def predict(model: nn.Module, steps: Sequence, images: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Returns PyTorch's predictions on images (H, W, C), RGB, as :meth:`OnnxModel.run` returns onnxruntime's."""
    packed = []
    for image in images:
        image = np.concatenate([image[..., 2::-1], image[..., 3:]], 2)  # as OpenCV reads it
        packed.append(run_steps(steps[1:], np.ascontiguousarray(image)))
    with torch.no_grad():
        return [_arrays(sample.cpu()) for sample in model.test_step(pseudo_collate(packed))]


def _arrays(sample: Any) -> dict[str, np.ndarray]:
    if 'pred_sem_seg' in sample:
        return dict(labels=sample.pred_sem_seg.data[0].numpy())
    if 'pred_instances' not in sample:
        return dict(scores=sample.pred_score.numpy())
    found = sample.pred_instances
    names = dict(boxes='bboxes', scores='scores', labels='labels', masks='masks')
    return {ours: found[theirs].numpy() for ours, theirs in names.items() if theirs in found}


def evaluate(config: Config, predict_on: Callable[[dict], Any], count: int, title: str) -> dict[str, float]:
    """Returns the metrics of predictions on at most ``count`` images of a config's test data, evenly spaced.

    Args:
        config: Its test data, pipeline and evaluator are used.
        predict_on: Returns the sample with predictions of what the data set returns for an image, see
            :func:`pytorch` and :func:`onnxruntime`.
        count: Maximum number of images.
        title: What the progress bar says.

    Returns:
        Those of :data:`METRICS` that the evaluator has, in points of 100, and ``images``, their number.
    """
    init_default_scope(config.get('default_scope', 'mmengine'))
    with tempfile.TemporaryDirectory() as scratch, silence():
        dataset = DATASETS.build(config.test_dataloader.dataset)
        indices = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int).tolist()
        evaluator = Evaluator([_of_images(one, dataset, indices, scratch) for one in as_list(config.test_evaluator)])
        evaluator.dataset_meta = dataset.metainfo
        for i in track(indices, title, console=Console(stderr=True), transient=True):
            with torch.no_grad(), report_unreadable_images():
                evaluator.process([predict_on(dataset[i])])
        found = evaluator.evaluate(len(indices))
    units = {name: 100 if name.startswith('coco/') else 1 for name in METRICS}
    points = {name: round(unit * float(found[name]), 4) for name, unit in units.items() if name in found}
    return {**points, 'images': len(indices)}


def pytorch(model: nn.Module) -> Callable[[dict], Any]:
    """Returns a function that predicts with PyTorch on what a data set returns for an image."""
    return lambda packed: model.test_step(pseudo_collate([packed]))[0].cpu()


def onnxruntime(exported: OnnxModel) -> Callable[[dict], Any]:
    """Returns a function that predicts with onnxruntime on the image file of what a data set returns."""
    return lambda packed: _predicted(packed['data_samples'], exported)


def _of_images(metric: dict, dataset: Any, indices: Sequence[int], scratch: str) -> dict:
    """Returns the config of a metric whose json has only some images of a data set."""
    path = metric.get('ann_file')
    if not path or len(indices) == len(dataset):
        return metric
    content = json.loads(Path(path).read_text())
    kept = {dataset.get_data_info(i)['img_id'] for i in indices}
    content['images'] = [one for one in content['images'] if one['id'] in kept]
    content['annotations'] = [one for one in content['annotations'] if one['image_id'] in kept]
    shorter = os.path.join(scratch, 'some.json')
    Path(shorter).write_text(json.dumps(content))
    return {**metric, 'ann_file': shorter}


def _predicted(sample: Any, exported: OnnxModel) -> Any:
    (found,) = exported.run([read_image(sample.img_path, exported.channels)])
    tensors = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in found.items()}
    if 'boxes' in tensors:
        sample.pred_instances = InstanceData(bboxes=tensors.pop('boxes'), **tensors)
    elif 'labels' in tensors:
        sample.pred_sem_seg = PixelData(data=tensors['labels'][None])
    else:
        sample.pred_score, sample.pred_label = tensors['scores'], tensors['scores'].argmax(keepdim=True)
    return sample
