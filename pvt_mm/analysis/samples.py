"""A figure of annotated images of the data of a config."""

import contextlib
import os
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from pvt_mm.analysis.dataset_check import Item, Split
from pvt_mm.analysis.figures import CLASS_COLORS, add_class_legend, draw_box, space_evenly
from pvt_mm.datasets.image_io import read_image
from pvt_mm.utils.errors import InputError


def plot_samples(splits: Sequence[Split], title: str, count: int = 6) -> Figure | None:
    """Plots images evenly spaced through the first checked split that has readable ones, with their valid annotations.

    Returns None if no image is readable.
    """
    split, samples = next(((s, found) for s in splits if (found := _read_samples(s.items, count))), (None, []))
    if not samples:
        return None
    columns = min(3, len(samples))
    rows = -(-len(samples) // columns)
    shapes = [image.shape[0] / image.shape[1] for _, image in samples]
    heights = [max(shapes[i : i + columns]) for i in range(0, len(shapes), columns)]
    figure = Figure(figsize=(3.6 * columns, 3.6 * sum(heights) + 0.3 * rows + 0.8), layout='constrained')
    used: list[int] = []
    grid = figure.subplots(rows, columns, squeeze=False, height_ratios=heights).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, (item, image) in zip(grid, samples, strict=False):
        axes.imshow(image[..., ::-1], interpolation='bicubic')
        axes.set_title(os.path.basename(item.path) if item.label is None else split.classes[item.label], fontsize=9)
        _draw(axes, split, item, used)
    names = [split.classes[label] for label in used]
    if len(names) > len(CLASS_COLORS):
        names[len(CLASS_COLORS) - 1 :] = ['other classes']
    add_class_legend(figure, names, CLASS_COLORS)
    figure.suptitle(title, fontsize=11)
    return figure


def _read_samples(items: Sequence[Item], count: int) -> list[tuple[Item, np.ndarray]]:
    """Returns up to ``count`` readable images, evenly spaced, each as (H, W, 3) BGR."""
    samples = []
    for i in space_evenly(len(items), 4 * count):
        with contextlib.suppress(InputError):  # it is among the faults
            samples.append((items[i], read_image(items[i].path)))
    return [samples[i] for i in space_evenly(len(samples), count)]


def _color(used: list[int], label: int) -> str:
    """Returns the colour of a class. The first classes that occur get their own, all others share the last."""
    if label not in used:
        used.append(label)
    return CLASS_COLORS[min(used.index(label), len(CLASS_COLORS) - 1)]


def _draw(axes: Axes, split: Split, item: Item, used: list[int]) -> None:
    for label, annotation in item.valid:
        (x, y, w, h), mask, color = annotation['bbox'], annotation.get('segmentation'), _color(used, label)
        for polygon in mask if isinstance(mask, list) else ():
            axes.add_patch(Polygon(np.reshape(polygon, (-1, 2)), alpha=0.4, color=color))
        draw_box(axes, (x, y, x + w, y + h), color)
    if item.seg_map and split.load_map:
        try:
            labels = split.load_map(dict(item.seg_map))['gt_seg_map']
        except Exception:  # it is among the faults
            return
        overlay = np.zeros((*labels.shape, 4))
        for label in np.unique(labels):
            if 0 <= label < len(split.classes) and label != split.ignored:
                overlay[labels == label] = to_rgba(_color(used, int(label)), 0.6)
        axes.imshow(overlay, interpolation='nearest')
