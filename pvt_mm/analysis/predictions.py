"""Figures of a detector's predictions next to the ground truth, on images of its test data."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner.checkpoint import find_latest_checkpoint

from pvt_mm.analysis.figures import CLASS_COLORS, add_class_legend, draw_box, set_title, space_evenly
from pvt_mm.apis.data_checks import check_data
from pvt_mm.apis.inference import load_model
from pvt_mm.datasets.image_io import loader_of, read_image, report_unreadable_images, to_bgr
from pvt_mm.utils.errors import CheckpointError, InputError, config_errors


class Boxes(NamedTuple):
    """Boxes on an image."""

    corners: np.ndarray  # (N, 4) x1, y1, x2, y2 in pixels of the image file
    labels: np.ndarray  # (N,) class indices
    scores: np.ndarray  # (N,), 1 for the ground truth

    def above(self, threshold: float) -> 'Boxes':
        """Returns the boxes with a score of at least ``threshold``."""
        kept = self.scores >= threshold
        return Boxes(self.corners[kept], self.labels[kept], self.scores[kept])


class Example(NamedTuple):
    """An image, (H, W, 3) RGB, its ground truth, and a model's predictions."""

    image: np.ndarray
    truth: Boxes
    predicted: Boxes


def find_checkpoint(path: str) -> str:
    """Returns the path of a checkpoint: ``path`` itself, also a URL, or the last checkpoint in a work directory.

    Raises:
        CheckpointError: There is no checkpoint.
    """
    if '://' in path:
        return path
    checkpoint = find_latest_checkpoint(path) if os.path.isdir(path) else path
    if checkpoint is None or not os.path.isfile(checkpoint):
        raise CheckpointError(f'{path} has no checkpoint' if os.path.isdir(path) else f'{path} does not exist')
    return checkpoint


def predict(config: Config, checkpoint: str, count: int) -> tuple[list[Example], list[str]]:
    """Returns the examples of ``count`` images evenly spaced through a config's test data, and the classes' names.

    Raises:
        InputError: The data or the checkpoint does not exist or does not fit, or the model is not a detector.
    """
    init_default_scope(config.get('default_scope', 'mmdet'))
    check_data(config, 'test')
    with config_errors('the config cannot be built'):
        dataset = DATASETS.build(config.test_dataloader.dataset)
    model = load_model(config, checkpoint)

    examples = []
    for index in space_evenly(len(dataset), count):
        with torch.no_grad(), report_unreadable_images():
            (sample,) = model.test_step(pseudo_collate([dataset[index]]))
        if 'pred_instances' not in sample:
            raise InputError(f'a {type(model).__name__} predicts no boxes: plot.py predictions needs a detector')
        found = sample.pred_instances.cpu().numpy()
        instances = [one for one in dataset.get_data_info(index)['instances'] if not one.get('ignore_flag')]
        corners = np.array([one['bbox'] for one in instances], float).reshape(-1, 4)
        labels = np.array([one['bbox_label'] for one in instances], int)
        truth = Boxes(corners, labels, np.ones(len(labels)))
        image = to_bgr(read_image(sample.img_path, loader_of(dataset)))[..., ::-1]
        examples.append(Example(image, truth, Boxes(found.bboxes, found.labels, found.scores)))
    return examples, list(dataset.metainfo['classes'])


def plot_predictions(examples: Sequence[Example], classes: Sequence[str], score_thr: float, title: str) -> Figure:
    """Plots a grid of examples, two per row: ground truth, and predictions with a score of at least ``score_thr``.

    If there are more classes than colours, each box is labelled with its class.
    """
    pairs = min(2, len(examples))
    rows = -(-len(examples) // pairs)
    tallest = max(height / width for height, width, _ in (example.image.shape for example in examples))
    figure = Figure(figsize=(5.2 * pairs, 2.6 * tallest * rows + 0.9), layout='constrained')
    axes = figure.subplots(rows, 2 * pairs, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    drawn = [(example.truth, example.predicted.above(score_thr)) for example in examples]
    used = sorted({int(label) for pair in drawn for boxes in pair for label in boxes.labels})
    names = classes if len(used) > len(CLASS_COLORS) else [''] * len(classes)
    for i, example in enumerate(examples):
        row, column = i // pairs, i % pairs * 2
        for j, boxes in enumerate(drawn[i]):
            axis = axes[row, column + j]
            axis.imshow(example.image, interpolation='bicubic')
            _draw(axis, boxes, names, scores=bool(j))
            if row == 0:
                axis.set_title(('ground truth', 'predictions')[j], fontsize=11)
    if len(used) <= len(CLASS_COLORS):
        add_class_legend(figure, [classes[label] for label in used], [_color(label) for label in used])
    set_title(figure, title)
    return figure


def _color(label: int) -> str:
    return CLASS_COLORS[label % len(CLASS_COLORS)]


def _draw(axis: Axes, boxes: Boxes, names: Sequence[str], scores: bool) -> None:
    for corners, label, score in zip(*boxes, strict=True):
        draw_box(axis, corners, _color(label))
        text = f'{names[label]} {score:.2f}'.strip() if scores else names[label]
        if text:
            x, y = corners[:2]
            side = 'bottom' if y > 0.05 * axis.get_ylim()[0] else 'top'  # above the box, or inside of it
            style = dict(fontsize=7, color='black', va=side, ha='left', clip_on=True)
            axis.text(x, y, text, bbox=dict(facecolor=_color(label), edgecolor='none', pad=0.8), **style)
