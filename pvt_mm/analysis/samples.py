"""A figure of annotated images of the data of a config."""

import contextlib
import os
from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Polygon, Rectangle

from pvt_mm.analysis.dataset_check import Item, Split
from pvt_mm.analysis.figures import CLASS_COLORS, draw_box, set_title, shorten_middle, space_evenly
from pvt_mm.datasets.coco.masks import is_number, mask_fault
from pvt_mm.datasets.image_io import read_image, to_bgr
from pvt_mm.utils.errors import InputError

TITLE = 44  # characters that fit above an image


def plot_samples(splits: Sequence[Split], title: str, count: int = 6) -> Figure | None:
    """Plots images evenly spaced through the first checked split that has readable ones, with their valid annotations.

    Returns None if no image is readable.
    """
    split, samples = next(((s, found) for s in splits if (found := _read_samples(s, count))), (None, []))
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
        axes.imshow(to_bgr(image)[..., ::-1], interpolation='bicubic')
        name = os.path.basename(item.path) if item.label is None else split.classes[item.label]
        axes.set_title(shorten_middle(name, TITLE), fontsize=9)
        _draw(axes, split, item, used)
    _add_legend(figure, split, used, {why for item, _ in samples for _, _, why in item.drawn if why}, 12 * columns)
    set_title(figure, title)
    return figure


def _add_legend(figure: Figure, split: Split, used: Sequence[int], ignored: set[str], width: int) -> None:
    """Adds the classes, and why training ignores or drops dashed objects, in rows of ``width`` characters or so."""
    names = [shorten_middle(split.classes[label], 24) for label in used]
    if len(names) > len(CLASS_COLORS):
        names[len(CLASS_COLORS) - 1 :] = ['other classes']
    handles: list[Artist] = [
        Patch(facecolor=color, label=name) for name, color in zip(names, CLASS_COLORS, strict=False)
    ]
    for why in sorted(ignored):
        label = 'ignored in training: a crowd' if why == 'crowd' else f'dropped by training: {why}'
        handles.append(Line2D([], [], color='0.3', linestyle='--', label=label))
    if handles:
        longest = max(len(str(handle.get_label())) for handle in handles) + 6
        columns = max(1, min(len(handles), 3 * width // longest))
        figure.legend(handles=handles, loc='outside lower center', ncols=columns, frameon=False)


def _read_samples(split: Split, count: int) -> list[tuple[Item, np.ndarray]]:
    """Returns up to ``count`` readable images, evenly spaced, as training sees them."""
    samples = []
    for i in space_evenly(len(split.items), 4 * count):
        with contextlib.suppress(InputError):  # it is among the faults
            samples.append((split.items[i], read_image(split.items[i].path, split.load)))
    return [samples[i] for i in space_evenly(len(samples), count)]


def _color(used: list[int], label: int) -> str:
    """Returns the colour of a class. The first classes that occur get their own, all others share the last."""
    if label not in used:
        used.append(label)
    return CLASS_COLORS[min(used.index(label), len(CLASS_COLORS) - 1)]


def _draw(axes: Axes, split: Split, item: Item, used: list[int]) -> None:
    for label, annotation, ignored in item.drawn:
        box, mask, color = annotation['bbox'], annotation.get('segmentation'), _color(used, label)
        if not all(map(is_number, box)):  # it is among the faults
            continue
        if isinstance(mask, list) and item.size and not mask_fault(mask, item.size):
            for polygon in mask:
                axes.add_patch(Polygon(np.reshape(polygon, (-1, 2)), alpha=0.1 if ignored else 0.4, color=color))
        x, y, w, h = box
        if ignored:
            axes.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor=color, linewidth=1.7, linestyle='--'))
        else:
            draw_box(axes, (x, y, x + w, y + h), color)
    if item.seg_map and split.maps:
        try:
            labels = split.maps.load({**item.seg_map, 'seg_fields': []})['gt_seg_map']
        except Exception:  # it is among the faults
            return
        if labels.ndim != 2:  # likewise
            return
        overlay = np.zeros((*labels.shape, 4))
        for label in np.unique(labels):
            if 0 <= label < len(split.classes) and label != split.maps.ignored:
                overlay[labels == label] = to_rgba(_color(used, int(label)), 0.6)
        axes.imshow(overlay, interpolation='nearest')
