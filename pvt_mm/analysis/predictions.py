"""What a detector sees: images of its test data, the ground truth beside the predictions."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner.checkpoint import find_latest_checkpoint

from pvt_mm.analysis.figures import OKABE_ITO
from pvt_mm.checkpoint import CheckpointError
from pvt_mm.engine.checks import check_data
from pvt_mm.engine.inference import load_model
from pvt_mm.engine.run import unreadable_images_named
from pvt_mm.errors import WRONG_CONFIG, InputError

ORDER = ('orange', 'sky blue', 'green', 'vermilion', 'purple', 'yellow', 'blue', 'black')  # bright ones first
COLORS = [OKABE_ITO[name] for name in ORDER]


class Boxes(NamedTuple):
    """Boxes on an image.

    Attributes:
        corners: (N, 4) x1, y1, x2, y2 in pixels of the image as it is on disk.
        labels: (N,) indices of classes.
        scores: (N,), 1 for the ground truth.
    """

    corners: np.ndarray
    labels: np.ndarray
    scores: np.ndarray

    def above(self, threshold: float) -> 'Boxes':
        """Returns the boxes whose score is at least ``threshold``."""
        kept = self.scores >= threshold
        return Boxes(self.corners[kept], self.labels[kept], self.scores[kept])


class Example(NamedTuple):
    """An image, (H, W, 3) RGB, its ground truth, and what a model predicts."""

    image: np.ndarray
    truth: Boxes
    predicted: Boxes


def find_checkpoint(path: str) -> str:
    """Returns a checkpoint's path, for a work directory its last checkpoint's.

    Raises:
        CheckpointError: There is none.
    """
    checkpoint = find_latest_checkpoint(path) if os.path.isdir(path) else path
    if checkpoint is None or not os.path.isfile(checkpoint):
        raise CheckpointError(f'{path} has no checkpoint' if os.path.isdir(path) else f'{path} does not exist')
    return checkpoint


def predict(config: Config, checkpoint: str, count: int) -> tuple[list[Example], list[str]]:
    """Runs the detector of a config on ``count`` images evenly spaced through its test data.

    Returns:
        The examples, and the names of the classes.

    Raises:
        InputError: The data or the checkpoint is not there, does not fit, or the config is no detector's.
    """
    from mmcv import imread

    init_default_scope(config.get('default_scope', 'mmdet'))
    check_data(config, 'test')
    try:
        dataset = DATASETS.build(config.test_dataloader.dataset)
    except WRONG_CONFIG as error:
        raise InputError(f'the config cannot be built: {type(error).__name__}: {error}') from error
    model = load_model(config, checkpoint)

    examples = []
    for index in np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int):
        with torch.no_grad(), unreadable_images_named():
            (sample,) = model.test_step(pseudo_collate([dataset[int(index)]]))
        if 'pred_instances' not in sample:
            raise InputError('plot.py predictions draws boxes, and this model predicts none')
        found = sample.pred_instances.cpu().numpy()
        instances = [one for one in dataset.get_data_info(int(index))['instances'] if not one.get('ignore_flag')]
        corners = np.array([one['bbox'] for one in instances], float).reshape(-1, 4)
        labels = np.array([one['bbox_label'] for one in instances], int)
        truth = Boxes(corners, labels, np.ones(len(labels)))
        image = imread(sample.img_path, channel_order='rgb')
        examples.append(Example(image, truth, Boxes(found.bboxes, found.labels, found.scores)))
    return examples, list(dataset.metainfo['classes'])


def plot_predictions(examples: Sequence[Example], classes: Sequence[str], score_thr: float, title: str) -> Figure:
    """Draws a grid of examples, two pairs a row: the ground truth, and the predictions of ``score_thr`` and more.

    Where there are more classes than colours, each box has the name of its class, too.
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
    names = classes if len(used) > len(COLORS) else [''] * len(classes)
    for i, example in enumerate(examples):
        row, column = i // pairs, i % pairs * 2
        for j, boxes in enumerate(drawn[i]):
            axis = axes[row, column + j]
            axis.imshow(example.image, interpolation='bicubic')
            _draw(axis, boxes, names, scores=bool(j))
            if row == 0:
                axis.set_title(('ground truth', 'predictions')[j], fontsize=11)
    if used and len(used) <= len(COLORS):
        handles = [Patch(facecolor=COLORS[label % len(COLORS)], label=classes[label]) for label in used]
        figure.legend(handles=handles, loc='outside lower center', ncols=min(8, len(handles)), frameon=False)
    figure.suptitle(title, fontsize=11)
    return figure


def title(config: str, checkpoint: str) -> str:
    """Returns what a picture is of: the config's name and the checkpoint's."""
    return f'{Path(config).stem}, {Path(checkpoint).name}'


def _draw(axis, boxes: Boxes, names: Sequence[str], scores: bool) -> None:
    for (x1, y1, x2, y2), label, score in zip(*boxes, strict=True):
        color = COLORS[label % len(COLORS)]
        axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor='black', linewidth=3))
        axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, linewidth=1.7))
        label_text = f'{names[label]} {score:.2f}'.strip() if scores else names[label]
        if label_text:
            # above the box, or in it where that is cut off
            side = 'bottom' if y1 > 0.05 * axis.get_ylim()[0] else 'top'
            text = dict(fontsize=7, color='black', va=side, ha='left', clip_on=True)
            axis.text(x1, y1, label_text, bbox=dict(facecolor=color, edgecolor='none', pad=0.8), **text)
