"""Drawing of predictions on images: boxes and masks of objects, regions, and the best scores of a classifier."""

import functools
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask

# Smaller images are enlarged to this shorter side in pixels, so that class names are readable on them.
MIN_SIDE, MAX_SIDE = 480, 20000
OPACITY = 0.5  # of masks
MAX_COVERED = 0.1  # part of an image that labels cover before they shrink

Color = tuple[int, int, int]  # RGB


def draw(image: np.ndarray, predictions: Sequence[dict], colors: Mapping[str, Color]) -> np.ndarray:
    """Draws predictions, best first, on a copy of an image, (H, W, 3) uint8 BGR, which is enlarged if it is small.

    A prediction is a dict as :class:`~pvt_mm.analysis.predictor.Predictor` returns them; ``colors`` are by label.
    """
    factor = max(1, min(-(-MIN_SIDE // min(image.shape[:2])), MAX_SIDE // max(image.shape[:2])))
    canvas = cv2.resize(image[..., ::-1], None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    masks = {i: _decode(one['mask'], canvas.shape) for i, one in enumerate(predictions) if 'mask' in one}
    regions = bool(predictions) and 'share' in predictions[0]
    for i in reversed(masks):  # the best on top
        color = np.array(colors[predictions[i]['label']])
        canvas[masks[i]] = (canvas[masks[i]] * (1 - OPACITY) + color * OPACITY).astype(np.uint8)
    picture = Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture)
    if regions:
        boxes = [_centre(masks[i]) for i in masks]
        _label(pen, boxes, [f'{one["label"]} {one["share"]:.2f}' for one in predictions], predictions, colors)
    elif predictions and 'bbox' in predictions[0]:
        boxes = [tuple(corner * factor for corner in one['bbox']) for one in predictions]
        width = max(2, round(min(canvas.shape[:2]) / 250))
        for (x1, y1, x2, y2), one in reversed(list(zip(boxes, predictions, strict=True))):
            corners = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
            pen.rectangle(corners, outline=colors[one['label']], width=width)
        _label(pen, boxes, [f'{one["label"]} {one["score"]:.2f}' for one in predictions], predictions, colors)
    elif predictions:
        _list_scores(picture, predictions)
    return np.ascontiguousarray(np.asarray(picture)[..., ::-1])


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
    return ImageFont.truetype(findfont(FontProperties(family='DejaVu Sans')), size)  # comes with matplotlib


def _decode(coded: dict, shape: Sequence[int]) -> np.ndarray:
    """Returns a mask of COCO's run lengths as a boolean array of a shape (H, W, ...), enlarged."""
    mask = coco_mask.decode(coded)
    return cv2.resize(mask, (shape[1], shape[0]), interpolation=cv2.INTER_NEAREST).astype(bool)


def _centre(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Returns the point that is farthest from the outline of a mask, as a box without size."""
    distance = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(distance.argmax(), mask.shape)
    return (x, y, x, y)
