"""Shapes: synthetic images of circles, squares and triangles, annotated for detection, segmentation, classification.

Drawn with NumPy and OpenCV alone. Colour, texture and size do not depend on the class: only the outline does.
"""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from pvt_mm.utils.errors import InputError
from pvt_mm.utils.files import read_json, write_json
from pvt_mm.utils.text import shorten

CLASSES = ('circle', 'square', 'triangle')
VERSION = 2  # part of every image's seed: raise it with any change to the drawing

MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 32, 4096
MARKER = 'shapes.json'  # describes a complete dataset
MMSEG_SPLITS = {'train': 'training', 'val': 'validation'}

_MIN_SHAPES, _MAX_SHAPES = 3, 7
_DIAMETER = (0.14, 0.3)  # of the circle of the same area, over the image's shorter side
_TILT = 0.15  # maximum, in radians from upright
_MIN_VISIBLE = 0.5  # fraction of a shape's area that neither the frame nor other shapes hide
_MAX_COVERING = 0.5  # fraction of a shape's area that may lie on shapes below, so that no visible part has a hole
_MIN_CONTRAST = 100.0  # Euclidean, in 8-bit BGR, between a shape's colour and 95% of its surroundings


@dataclass(frozen=True)
class Instance:
    """The visible part of one shape, of class ``CLASSES[label]``: a mask, (H, W) bool, and what surrounds it.

    As in COCO, the box is (x, y, width, height) and each polygon ``[x0, y0, x1, y1, ...]``, in pixels.
    """

    label: int
    mask: np.ndarray
    bbox: tuple[int, int, int, int]
    polygons: list[list[float]]


@dataclass(frozen=True)
class Scene:
    """An image, (H, W, 3) uint8 in BGR, and the shapes in it, the lowest first."""

    image: np.ndarray
    instances: list[Instance]

    @property
    def semantic_map(self) -> np.ndarray:
        """Class of each pixel, (H, W) uint8: 0 is background, ``1 + label`` a shape."""
        semantic_map = np.zeros(self.image.shape[:2], np.uint8)
        for instance in self.instances:
            semantic_map[instance.mask] = 1 + instance.label
        return semantic_map


# ---- texture: fields in about [-1, 1] over an (h, w) window; x and y run from 0 to 1 along its longer side


def _grid(h: int, w: int) -> tuple[np.ndarray, np.ndarray]:
    step = np.float32(1 / max(h, w))
    return (np.arange(h, dtype=np.float32)[:, None] + 0.5) * step, (np.arange(w, dtype=np.float32) + 0.5) * step


def _ramp(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    y, x = _grid(h, w)
    angle = rng.uniform(0, 2 * math.pi)
    return np.float32(math.cos(angle)) * (x - 0.5) + np.float32(math.sin(angle)) * (y - 0.5)


def _plain(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    return np.zeros((h, w), np.float32)


def _gradient(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    return 1.6 * _ramp(rng, h, w)


def _clouds(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    field = np.zeros((h, w), np.float32)
    for weight, cells in ((0.8, 4), (0.4, 8), (0.2, 16), (0.1, 32)):
        coarse = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
        field += weight * cv2.resize(coarse, (w, h), interpolation=cv2.INTER_CUBIC)
    return field


def _wave(rng: np.random.Generator, h: int, w: int, sharpness: float) -> np.ndarray:
    return np.tanh(sharpness * np.sin(_ramp(rng, h, w) * rng.uniform(20, 60) + rng.uniform(0, 6)))


def _stripes(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    return _wave(rng, h, w, rng.uniform(0.8, 5))


def _checker(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    sharpness = rng.uniform(0.8, 4)
    return _wave(rng, h, w, sharpness) * _wave(rng, h, w, sharpness)


def _blobs(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """Draws a few blurred round spots at low resolution, since they are smooth, and enlarges them."""
    small_h, small_w = max(2, round(48 * h / max(h, w))), max(2, round(48 * w / max(h, w)))
    y, x = _grid(small_h, small_w)
    field = np.zeros((small_h, small_w), np.float32)
    for _ in range(rng.integers(2, 7)):
        cy, cx, radius = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.08, 0.3)
        spot = np.exp(-((y - np.float32(cy)) ** 2 + (x - np.float32(cx)) ** 2) / np.float32(2 * radius**2))
        field = np.maximum(field, spot)
    return cv2.resize(2 * field - 1, (w, h), interpolation=cv2.INTER_LINEAR)


_BACKGROUNDS = (_gradient, _clouds, _stripes, _checker, _blobs)
_SURFACES = (_plain, _gradient, _clouds, _stripes, _checker)


def _tint(rng: np.random.Generator, low: float, high: float) -> np.ndarray:
    """Returns a random change of colour, (3,), whose norm is between the two."""
    direction = rng.normal(size=3) + rng.normal()  # the shared term: lightness changes more than hue
    return (direction / np.linalg.norm(direction) * rng.uniform(low, high)).astype(np.float32)


def _background(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    layers = [
        (_BACKGROUNDS[rng.integers(len(_BACKGROUNDS))], _tint(rng, 8, 28)),
        (_blobs, _tint(rng, 3, 20)),
        (_clouds, _tint(rng, 2, 10)),
    ]
    canvas = np.full((h, w, 3), rng.uniform(30, 225, 3), np.float32)
    for field, tint in layers:
        canvas += field(rng, h, w)[..., None] * tint
    return canvas


# ---- shapes


class _Shape(NamedTuple):
    label: int
    area: float  # within its outline, in pixels
    window: tuple[slice, slice]  # rows and columns of its bounding box with a margin of 4 pixels
    depth: np.ndarray  # distance of each pixel of the window to the outline in pixels, negative outside


def _draw_shape(rng: np.random.Generator, label: int, h: int, w: int) -> _Shape:
    low, high = _DIAMETER
    diameter = min(h, w) * low * (high / low) ** rng.random()
    margin = 0.4 * diameter
    cx, cy = rng.uniform(margin, w - margin), rng.uniform(margin, h - margin)
    radius, area, corners = diameter / 2, math.pi / 4 * diameter**2, None
    if CLASSES[label] != 'circle':
        count, upright = (4, math.pi / 4) if CLASSES[label] == 'square' else (3, -math.pi / 2)
        angles = upright + 2 * math.pi * np.arange(count) / count + rng.uniform(-_TILT, _TILT)
        if count == 3:
            angles += rng.uniform(-0.15, 0.15, 3)
        unit = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        x, y = unit.T
        radius = math.sqrt(area / (0.5 * float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))))
        corners = np.array([cx, cy]) + radius * unit

    reach = radius + 4
    rows = slice(max(0, math.floor(cy - reach)), min(h, math.ceil(cy + reach)))
    cols = slice(max(0, math.floor(cx - reach)), min(w, math.ceil(cx + reach)))
    y, x = np.arange(rows.start, rows.stop)[:, None] + 0.5, np.arange(cols.start, cols.stop) + 0.5
    if corners is None:
        depth = radius - np.hypot(x - cx, y - cy)
    else:
        depth = np.full((y.size, x.size), np.inf)
        for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            edge = math.hypot(x1 - x0, y1 - y0)
            depth = np.minimum(depth, ((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)) / edge)
    return _Shape(label, area, (rows, cols), depth)


def _place(rng: np.random.Generator, label: int, shapes: list[_Shape], owner: np.ndarray) -> None:
    """Adds a shape of which enough is visible, as of those below it, unless 20 attempts fail.

    ``owner``, (H, W), has the index in ``shapes`` of each pixel's topmost shape, -1 in the background. Both are updated
    in place.
    """
    for _ in range(20):
        shape = _draw_shape(rng, label, *owner.shape)
        inside = shape.depth >= 0
        covered = np.bincount(owner[shape.window][inside] + 1, minlength=len(shapes) + 1)[1:]
        visible = np.bincount(owner.ravel() + 1, minlength=len(shapes) + 1)[1:] - covered
        if (
            inside.sum() >= _MIN_VISIBLE * shape.area
            and covered.sum() <= _MAX_COVERING * shape.area
            and all(left >= _MIN_VISIBLE * below.area for left, below in zip(visible, shapes, strict=True))
        ):
            owner[shape.window][inside] = len(shapes)
            shapes.append(shape)
            return


def _paint(rng: np.random.Generator, shape: _Shape, canvas: np.ndarray) -> None:
    """Blends a shape into the canvas, in a colour that contrasts with its surroundings."""
    depth, below = shape.depth, canvas[shape.window]
    surroundings = below[(depth > -4) & (depth < 2)]
    surroundings = surroundings[:: max(1, len(surroundings) // 200)]
    candidates = rng.uniform(10, 245, (32, 1, 3)).astype(np.float32)
    contrast = np.percentile(np.linalg.norm(candidates - surroundings, axis=-1), 5, axis=1)
    chosen = np.argmax(contrast >= _MIN_CONTRAST) if contrast.max() >= _MIN_CONTRAST else np.argmax(contrast)

    h, w = depth.shape
    surface = candidates[chosen] + _SURFACES[rng.integers(len(_SURFACES))](rng, h, w)[..., None] * _tint(rng, 2, 15)
    surface += _gradient(rng, h, w)[..., None] * _tint(rng, 0, 20)
    coverage = np.clip(depth + 0.5, 0, 1)[..., None].astype(np.float32)  # antialiased edge
    below += coverage * (surface - below)


def _instance(label: int, mask: np.ndarray) -> Instance:
    x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
    # Outlines are found on a copy four times as large, so that they follow the edges of pixels.
    scale, small = 4, np.pad(mask[y : y + h, x : x + w], 1).astype(np.uint8) * 255
    large = cv2.resize(small, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    contours, _ = cv2.findContours((large > 127).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    polygons = []
    for contour in contours:
        points = cv2.approxPolyDP(contour, 0.4 * scale, True).reshape(-1, 2)
        if len(points) >= 3:
            points = np.add(np.clip((points + 0.5) / scale - 1, 0, (w, h)), (x, y))
            polygons.append(np.round(points, 2).ravel().tolist())
    return Instance(label, mask, (x, y, w, h), polygons)


def draw_scene(
    rng: np.random.Generator, image_size: int | tuple[int, int] = 160, first_label: int | None = None
) -> Scene:
    """Draws one image: a textured background and 3 to 7 shapes that may partly hide one another.

    At least half of each shape is visible, and each one is annotated. A shape has the area of a circle whose diameter
    is 0.14 to 0.3 of the image's shorter side; squares and triangles are slightly tilted.

    Args:
        rng: The only source of randomness.
        image_size: Side of a square image, or (H, W), in pixels.
        first_label: Class of the first, lowest shape; random if None.

    Raises:
        InputError: A side is not within 32 to 4096 pixels.
    """
    h, w = _check_size(image_size)
    canvas = _background(rng, h, w)
    labels = rng.integers(len(CLASSES), size=rng.integers(_MIN_SHAPES, _MAX_SHAPES + 1)).tolist()
    if first_label is not None:
        labels[0] = first_label
    shapes, owner = [], np.full((h, w), -1)
    for label in labels:
        _place(rng, label, shapes, owner)
    for shape in shapes:
        _paint(rng, shape, canvas)

    canvas = (canvas - 128) * rng.uniform(0.75, 1.1) + rng.uniform(108, 148)
    canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.3, 0.7))
    canvas += rng.standard_normal(canvas.shape, np.float32) * np.float32(rng.uniform(2, 7))
    image = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    return Scene(image, [_instance(shape.label, owner == i) for i, shape in enumerate(shapes)])


def _crop(rng: np.random.Generator, scene: Scene, label: int) -> np.ndarray:
    """Crops a square around the shape of this class with the fewest other shapes near it, or the largest of several."""
    h, w = scene.image.shape[:2]
    occupied = scene.semantic_map > 0
    ranked = []
    for instance in (one for one in scene.instances if one.label == label):
        x, y, bw, bh = instance.bbox
        longer = max(bw, bh)
        side = min(h, w, max(MIN_IMAGE_SIZE, math.ceil(longer * rng.uniform(1.15, 1.5))))
        shift = max(0, side - longer) / 2 * rng.uniform(-1, 1, 2)
        left = min(max(round(x + (bw - side) / 2 + shift[0]), 0), w - side)
        top = min(max(round(y + (bh - side) / 2 + shift[1]), 0), h - side)
        window = slice(top, top + side), slice(left, left + side)
        share = instance.mask[window].sum() / occupied[window].sum()
        ranked.append(((round(float(share), 1), int(instance.mask.sum())), window))
    return scene.image[max(ranked, key=lambda pair: pair[0])[1]]


# ---- files


def _check_size(image_size: int | tuple[int, int]) -> tuple[int, int]:
    h, w = (image_size, image_size) if isinstance(image_size, int) else image_size
    if not all(MIN_IMAGE_SIZE <= side <= MAX_IMAGE_SIZE for side in (h, w)):
        raise InputError(f'image size {h}x{w}: each side must be within {MIN_IMAGE_SIZE} to {MAX_IMAGE_SIZE} pixels')
    return int(h), int(w)


def _paths(split: str, index: int) -> tuple[str, str, str]:
    """Returns the paths of an image, its semantic map and its crop, relative to the folder."""
    name, folder = f'{index + 1:012d}', CLASSES[index % len(CLASSES)]
    maps = f'annotations/{MMSEG_SPLITS[split]}'
    return f'{split}2017/{name}.jpg', f'{maps}/{name}.png', f'classification/{split}/{folder}/{name}.jpg'


def _files(train: int, val: int) -> Iterator[str]:
    """Yields the paths of all generated files except the marker, relative to the folder."""
    for split, count in (('train', train), ('val', val)):
        yield f'annotations/instances_{split}2017.json'
        for index in range(count):
            paths = _paths(split, index)
            yield from (*paths, f'images/{MMSEG_SPLITS[split]}/{Path(paths[0]).name}')


def _folders() -> Iterator[str]:
    """Yields the paths of all generated folders, parents first, relative to the folder."""
    yield from ('annotations', 'images', 'classification')
    for split, mmseg_split in MMSEG_SPLITS.items():
        yield from (f'{split}2017', f'annotations/{mmseg_split}', f'images/{mmseg_split}', f'classification/{split}')
        yield from (f'classification/{split}/{name}' for name in CLASSES)


def _read_marker(path: Path) -> dict:
    """Returns the content of a finished folder's marker, an empty dict if there is none."""
    try:
        marker = read_json(path)
        return marker and {**marker, 'train': int(marker['train']), 'val': int(marker['val'])}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f'{path} was not written by the generator: choose another folder, or delete it') from error


def _check_replaceable(out: Path, marker: dict) -> None:
    """Raises an InputError if a folder contains anything that the generator has not written."""
    if out.exists() and not out.is_dir():
        raise InputError(f'{out} is not a folder: choose another path')
    generated = {MARKER, *_folders(), *_files(marker['train'], marker['val'])} if marker else set()
    found = (Path(root, name) for root, folders, files in os.walk(out) for name in folders + files)
    others = sorted({path.relative_to(out).as_posix() for path in found} - generated)
    if others:
        raise InputError(
            f'{out} contains files that are not of a finished dataset of shapes ({shorten(others)}): choose another '
            'folder, or move them'
        )


def _write(out: Path, options: dict, progress: Callable[[Sequence], Iterable]) -> None:
    """Generates a dataset into a new folder."""
    for folder in _folders():
        if not folder.startswith('images/'):
            (out / folder).mkdir(parents=True)
    h, w = options['image_size']
    annotations = {split: [] for split in MMSEG_SPLITS}
    places = [(split, index) for split in MMSEG_SPLITS for index in range(options[split])]
    for split, index in progress(places):
        rng = np.random.default_rng([VERSION, options['seed'], list(MMSEG_SPLITS).index(split), index])
        label = index % len(CLASSES)
        scene = draw_scene(rng, (h, w), label)
        images = (scene.image, scene.semantic_map, _crop(rng, scene, label))
        for path, pixels in zip(_paths(split, index), images, strict=True):
            (out / path).write_bytes(cv2.imencode(Path(path).suffix, pixels)[1].tobytes())
        annotations[split] += [
            dict(
                id=number,
                image_id=index + 1,
                category_id=1 + instance.label,
                iscrowd=0,
                bbox=instance.bbox,
                area=int(instance.mask.sum()),
                segmentation=instance.polygons,
            )
            for number, instance in enumerate(scene.instances, len(annotations[split]) + 1)
        ]

    instances = {}
    for split, found in annotations.items():
        names = [Path(_paths(split, index)[0]).name for index in range(options[split])]
        coco = dict(
            info=dict(description='shapes', version=str(VERSION)),
            licenses=[],
            images=[dict(id=1 + i, file_name=name, height=h, width=w) for i, name in enumerate(names)],
            annotations=found,
            categories=[dict(id=1 + i, name=name, supercategory='shape') for i, name in enumerate(CLASSES)],
        )
        (out / 'annotations' / f'instances_{split}2017.json').write_text(json.dumps(coco))
        images, link = out / f'{split}2017', out / 'images' / MMSEG_SPLITS[split]
        try:
            link.symlink_to(Path('..') / images.name, target_is_directory=True)
        except OSError:  # the file system or the user's account does not support links
            shutil.copytree(images, link)
        labels = [annotation['category_id'] - 1 for annotation in found]
        instances[split] = {name: labels.count(label) for label, name in enumerate(CLASSES)}
    write_json(out / MARKER, dict(options, instances=instances))


def make_shapes(
    out: str | os.PathLike,
    *,
    image_size: int | tuple[int, int] = 160,
    train: int = 600,
    val: int = 100,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[Sequence], Iterable] = iter,
) -> dict:
    """Writes the dataset in the layouts that MMDetection, MMSegmentation and image-folder classifiers expect.

    ``train2017/``, ``val2017/`` and ``annotations/instances_{train,val}2017.json`` are COCO's (ids 1 to 3 for
    ``CLASSES``, areas and boxes of the visible parts). ``images/{training,validation}/`` (links to the former, or
    copies where links are not supported) and ``annotations/{training,validation}/`` are MMSegmentation's, 0 being the
    background. ``classification/{train,val}/<class>/`` has one square crop of each image, of varying size, with the
    classes in turn.

    An image depends on ``VERSION``, ``seed``, its split, its index and its size, and not on the counts. The dataset is
    generated in a temporary folder next to ``out``, which is renamed when it is complete. A complete dataset with the
    same options is kept.

    Args:
        out: The folder, created with its parents.
        image_size: Side of square images, or (H, W), in pixels, 32 to 4096.
        train: Number of training images.
        val: Number of validation images.
        seed: An integer from 0.
        overwrite: Replace a complete dataset with other options.
        progress: Wraps the list of images to draw, as ``rich.progress.track`` does.

    Returns:
        The content of ``shapes.json`` (version, seed, image_size as [H, W], counts, instances of each class in each
        split), and ``written``, False if the folder was complete.

    Raises:
        InputError: An option is out of range, or ``out`` contains a dataset with other options or any other file.
        OSError: ``out`` cannot be written.
    """
    size = _check_size(image_size)
    for name, value in (('train', train), ('val', val), ('seed', seed)):
        if value < 0:
            raise InputError(f'{name} is {value}: it must not be negative')
    options = dict(version=VERSION, seed=seed, image_size=list(size), train=train, val=val)

    out = Path(out)
    marker = _read_marker(out / MARKER)
    existing = {name: marker.get(name) for name in options}
    if existing == options and all((out / file).exists() for file in _files(train, val)):
        return {**marker, 'written': False}
    if marker and existing != options and not overwrite:
        text = ', '.join(f'{name}={value}' for name, value in existing.items())
        raise InputError(
            f'{out} contains shapes with other options ({text}): choose another folder, or replace them with '
            '--overwrite (overwrite=True)'
        )
    _check_replaceable(out, marker)

    target = out.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory('.tmp', f'.{target.name}.', target.parent) as temporary:
        new = Path(temporary, 'new')
        _write(new, options, progress)
        if target.exists():
            target.rename(Path(temporary, 'old'))
        new.rename(target)
    return {**read_json(out / MARKER), 'written': True}
