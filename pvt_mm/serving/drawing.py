"""Drawing of predictions on images: boxes and masks of objects, regions, and the best scores of a classifier."""

import contextlib
import functools
import importlib.util
import os
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pvt_mm.serving.run_lengths import decode

# Smaller images are enlarged to this shorter side in pixels, so that class names are readable on them.
MIN_SIDE, MAX_SIDE = 480, 20000
OPACITY = 0.5  # of masks
MAX_COVERED = 0.1  # part of an image that labels cover before they shrink
GRID = 128  # cells along the longer side of a mask in which its innermost point is looked for

Color = tuple[int, int, int]  # RGB


def draw(image: np.ndarray, predictions: Sequence[dict], colors: Mapping[str, Color]) -> np.ndarray:
    """Draws predictions, best first, on a copy of an image, (H, W, 3) uint8 RGB, which is enlarged if it is small.

    A prediction is a dict as in :class:`~pvt_mm.serving.result.Result`; ``colors`` are by label.
    """
    height, width = image.shape[:2]
    factor = max(1, min(-(-MIN_SIDE // min(height, width)), MAX_SIDE // max(height, width)))
    picture = Image.fromarray(np.ascontiguousarray(image))
    canvas = np.array(picture.resize((width * factor, height * factor), Image.Resampling.BICUBIC))
    masks = {i: decode(one['mask']) for i, one in enumerate(predictions) if 'mask' in one}
    covered, painted = np.zeros((height, width), bool), np.zeros((height, width, 3), np.uint8)
    for i in reversed(masks):  # the best on top
        covered |= masks[i]
        painted[masks[i]] = colors[predictions[i]['label']]
    covered, painted = (x.repeat(factor, 0).repeat(factor, 1) for x in (covered[..., None], painted))
    canvas = np.where(covered, canvas * (1 - OPACITY) + painted * OPACITY, canvas).astype(np.uint8)
    picture = Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture)
    if predictions and 'share' in predictions[0]:
        points = [innermost(masks[i]) for i in masks]
        boxes = [tuple((part + 0.5) * factor for part in (*point, *point)) for point in points]
        _label(pen, boxes, [f'{one["label"]} {one["share"]:.2f}' for one in predictions], predictions, colors)
    elif predictions and 'bbox' in predictions[0]:
        boxes = [tuple(corner * factor for corner in one['bbox']) for one in predictions]
        line = max(2, round(min(canvas.shape[:2]) / 250))
        for (x1, y1, x2, y2), one in reversed(list(zip(boxes, predictions, strict=True))):
            corners = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
            pen.rectangle(corners, outline=colors[one['label']], width=line)
        _label(pen, boxes, [f'{one["label"]} {one["score"]:.2f}' for one in predictions], predictions, colors)
    elif predictions:
        _list_scores(picture, predictions)
    return np.array(picture)


def place_labels(
    sizes: Sequence[tuple[float, float]], boxes: Sequence[Sequence[float]], canvas: tuple[int, int]
) -> list[tuple[float, float]]:
    """Returns the upper left corner (x, y) of the label of each box, so that labels overlap as little as possible.

    A label stays at the outline of its box (x1, y1, x2, y2) and on the canvas (w, h); the first boxes choose first.
    ``sizes`` are (w, h) of the labels, all in pixels.
    """
    placed = np.zeros((0, 4))
    corners = []
    for (w, h), (x1, y1, x2, y2) in zip(sizes, boxes, strict=True):
        right, steps = max(x2 - w, x1), np.arange(1, max(2, min(int((y2 - y1) // h), 12)))
        places = [(x1, y1 - h), (x1, y1), (right, y1 - h), (right, y1), (x1, y2), (right, y2), (x1, y2 - h)]
        places += [(x, y1 + step * h) for step in steps for x in (x1, right)]
        places += [(x, y) for step in (1, 2, 3) for x in (x1, right) for y in (y1 - (step + 1) * h, y2 + step * h)]
        found = np.clip(places, 0, np.maximum((canvas[0] - w, canvas[1] - h), 0))
        both = np.minimum(found[:, None] + (w, h), placed[:, 2:]) - np.maximum(found[:, None], placed[:, :2])
        overlaps = both.clip(0).prod(-1).sum(-1)
        x, y = found[overlaps.argmin()]  # the first of equals
        placed = np.vstack([placed, (x, y, x + w, y + h)])
        corners.append((float(x), float(y)))
    return corners


def _label(
    pen: ImageDraw.ImageDraw,
    boxes: Sequence[Sequence[float]],
    texts: Sequence[str],
    predictions: Sequence[dict],
    colors: Mapping[str, Color],
) -> None:
    """Draws the label of each box, the first on top, in a font that is smaller where there are many."""
    area = pen.im.size[0] * pen.im.size[1]
    font = _font(max(13, round(0.018 * area**0.5)))
    covered = sum(font.getlength(text) for text in texts) * sum(font.getmetrics()) / area
    font = _font(round(max(10, font.size * min(1, (MAX_COVERED / max(covered, 1e-9)) ** 0.5))))
    pad = max(font.size // 6, 2)
    height = sum(font.getmetrics()) + pad
    sizes = [(font.getlength(text) + 2 * pad, height) for text in texts]
    corners = place_labels(sizes, boxes, pen.im.size)
    for (x, y), (w, h), text, one in list(zip(corners, sizes, texts, predictions, strict=True))[::-1]:
        color = colors[one['label']]
        pen.rectangle((x, y, x + w, y + h), fill=color)
        bright = np.dot(color, (0.299, 0.587, 0.114)) > 110
        pen.text((x + pad, y + pad / 2), text, fill='black' if bright else 'white', font=font)


def _list_scores(picture: Image.Image, predictions: Sequence[dict]) -> None:
    """Lists the scores of a classifier at the upper left, in a box that is a little transparent."""
    text = '\n'.join(f'{one["score"]:.2f}  {one["label"]}' for one in predictions)
    size = max(min(picture.size) // 24, 12)
    pen = ImageDraw.Draw(picture, 'RGBA')
    box = pen.multiline_textbbox((size, size), text, font=_font(size))
    pad = size // 3
    pen.rectangle((box[0] - pad, box[1] - pad, box[2] + pad, box[3] + pad), fill=(0, 0, 0, 180))
    pen.multiline_text((size, size), text, fill='white', font=_font(size))


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Returns DejaVu Sans, from the system or from matplotlib, or else Pillow's own font, of ASCII letters only."""
    plots = importlib.util.find_spec('matplotlib')
    folders = [os.path.join(one, 'mpl-data/fonts/ttf') for one in (plots and plots.submodule_search_locations) or ()]
    for folder in ('', *folders):
        with contextlib.suppress(OSError):
            return ImageFont.truetype(os.path.join(folder, 'DejaVuSans.ttf'), size)
    return ImageFont.load_default(size)


def innermost(mask: np.ndarray) -> tuple[int, int]:
    """Returns the pixel (x, y) of a mask (H, W) that is about the farthest from its outline."""
    step = -(-max(mask.shape) // GRID)
    padded = np.pad(mask, [(0, -side % step) for side in mask.shape])
    height, width = (side // step for side in padded.shape)
    cells = padded.reshape(height, step, width, step).mean((1, 3))
    inside = cells >= min(0.5, cells.max())
    depth = np.zeros(cells.shape, int)
    while inside.any():  # an erosion each
        depth += inside
        near = np.pad(inside, 1)
        inside = inside & near[:-2, 1:-1] & near[2:, 1:-1] & near[1:-1, :-2] & near[1:-1, 2:]
    deepest = np.argwhere(depth == depth.max())
    top, left = deepest[len(deepest) // 2] * step
    pixels = np.argwhere(mask[top : top + step, left : left + step])
    y, x = pixels[np.abs(pixels - step / 2).sum(1).argmin()]
    return int(left + x), int(top + y)
