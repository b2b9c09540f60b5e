"""Predictions of a trained model on images, as plain values and drawn (Figure 7 of the paper)."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib.colors import to_rgb
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, init_default_scope
from mmengine.structures import BaseDataElement
from pycocotools import mask as coco_mask

from pvt_mm.analysis.drawing import Color, draw
from pvt_mm.analysis.figures import CLASS_COLORS
from pvt_mm.analysis.predictions import find_checkpoint
from pvt_mm.apis.config import innermost_dataset, load_config
from pvt_mm.apis.inference import image_steps, load_model, run_steps
from pvt_mm.apis.installed import find_config
from pvt_mm.datasets.image_io import read_image, to_bgr
from pvt_mm.utils.errors import InputError
from pvt_mm.utils.files import atomic_write

IMAGES = ('.jpg', '.jpeg', '.png')


@dataclass(frozen=True)
class Result:
    """The predictions on an image.

    Attributes:
        objects: A dict for each, best first, of plain values. It has a ``label`` and, of a detector, its ``score``,
            ``bbox`` (x1, y1, x2, y2) in pixels of the image and the ``mask``, if any; of a segmentor, its ``share`` of
            the image and the ``mask``; of a classifier (the best five), the ``score``. Masks are in COCO's compressed
            run lengths.
        image: (H, W, 3) uint8 BGR.
        colors: RGB, by label.
    """

    objects: list[dict]
    image: np.ndarray = field(repr=False)
    colors: dict[str, Color] = field(repr=False)

    def draw(self) -> np.ndarray:
        """Returns the image, (H, W, 3) uint8 BGR, with the objects drawn on it, enlarged if it is small."""
        return draw(self.image, self.objects, self.colors)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the image with the objects drawn on it.

        Raises:
            InputError: The name does not end in .jpg, .jpeg or .png, or the image is too large for a JPEG.
        """
        suffix = Path(path).suffix.lower()
        if suffix not in IMAGES:
            raise InputError(f'{path} is not the name of an image: it must end in {", ".join(IMAGES)}')
        try:
            content = cv2.imencode(suffix, self.draw())[1].tobytes()
        except cv2.error as error:
            raise InputError(f'{path} cannot be written as {suffix[1:]}: {" ".join(str(error).split())}') from None
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)


class Predictor:
    """A trained detector, segmentor or classifier, to be called with images.

    Args:
        config: A config, or its file: one of this project by its name in it, such as
            ``configs/retinanet/pvt_s_1x.py``, is found where the package is installed, too.
        checkpoint: A checkpoint, its URL, or a work directory for its last checkpoint.
        score_thr: Minimum score of a detector's objects.

    Raises:
        InputError: The config, the model or its test pipeline is not valid, or the checkpoint does not match the model.
    """

    def __init__(self, config: str | os.PathLike | Config, checkpoint: str | os.PathLike, score_thr: float = 0.3):
        config = config if isinstance(config, Config) else load_config(find_config(config))
        checkpoint = find_checkpoint(os.fspath(checkpoint))
        self.score_thr = score_thr
        self.scope = config.get('default_scope', 'mmengine')
        self.steps = image_steps(config)
        self.model = load_model(config, checkpoint)
        dataset = innermost_dataset(config.test_dataloader.dataset)
        meta, count = self.model.dataset_meta, _count_classes(self.model)
        self.classes, palette = _classes(checkpoint, meta, dataset, count)
        self.colors = dict(zip(self.classes, palette, strict=False))

    @torch.no_grad()
    def __call__(self, image: str | os.PathLike | np.ndarray) -> Result:
        """Predicts on an image: a file, or (H, W, 3) uint8 BGR as OpenCV reads it (of as many channels as in training).

        Raises:
            InputError: The file cannot be read, or the model cannot take the image.
        """
        init_default_scope(self.scope)  # another model may have been used since
        path = '' if isinstance(image, np.ndarray) else os.fspath(image)
        pixels = read_image(path, self.steps[0]) if path else np.asarray(image)
        if not path and getattr(self.steps[0], 'to_float32', False):
            pixels = pixels.astype(np.float32)
        packed = run_steps(self.steps[1:], pixels, path)
        try:
            (sample,) = self.model.test_step(pseudo_collate([packed]))
        except ValueError as error:
            raise InputError(str(error)) from error
        return Result(self._objects(sample.cpu()), to_bgr(pixels), self.colors)

    def _objects(self, sample: BaseDataElement) -> list[dict]:
        if 'pred_sem_seg' in sample:
            return self._regions(sample.pred_sem_seg.data[0].numpy())
        if 'pred_instances' in sample:
            return self._instances(sample.pred_instances)
        scores = sample.pred_score.numpy()
        best = scores.argsort()[::-1][:5]
        return [dict(label=self.classes[i], score=round(float(scores[i]), 4)) for i in best]

    def _instances(self, instances: BaseDataElement) -> list[dict]:
        kept = instances[instances.scores >= self.score_thr]
        objects = []
        for found in kept[kept.scores.argsort(descending=True, stable=True)]:
            score, box = round(found.scores.item(), 4), [round(x, 2) for x in found.bboxes[0].tolist()]
            masks = {'mask': encode_mask(found.masks[0].numpy())} if 'masks' in found else {}
            objects.append(dict(label=self.classes[found.labels], score=score, bbox=box, **masks))
        return objects

    def _regions(self, regions: np.ndarray) -> list[dict]:
        objects = []
        for label in np.unique(regions):
            mask = regions == label
            share = round(mask.mean().item(), 4)
            objects.append(dict(label=self.classes[label], share=share, mask=encode_mask(mask)))
        return sorted(objects, key=lambda one: -one['share'])


def encode_mask(mask: np.ndarray) -> dict:
    """Returns a mask (H, W) as COCO's compressed run lengths, in values that JSON can hold."""
    coded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return dict(size=coded['size'], counts=coded['counts'].decode())


def _classes(checkpoint: str, meta: dict, dataset: dict, count: int | None) -> tuple[list[str], list[Color]]:
    """Returns names and RGB colours of ``count`` classes, from a checkpoint's ``meta`` or the data set's config."""
    try:
        known = DATASETS.build({**dataset, 'lazy_init': True}).metainfo
    except Exception:  # the data need not exist
        known = {}
    named = [one.get('classes') or () for one in (meta, known, dataset.get('metainfo', {}))]
    classes = next((list(names) for names in named if names and count in (None, len(names))), None)
    if not classes:
        others = ''.join(f', but {len(names)} others' for names in named[:1] if names)
        which = f'the {count} classes{others}' if count else 'the classes'
        raise InputError(f'{checkpoint} does not name {which}: set test_dataloader.dataset.metainfo.classes')
    palette = meta.get('palette') or known.get('palette')
    if len(classes) <= len(CLASS_COLORS):
        palette = [[round(255 * part) for part in to_rgb(color)] for color in CLASS_COLORS[: len(classes)]]
    if not isinstance(palette, (list, tuple)) or len(palette) < len(classes):
        palette = np.random.default_rng(0).integers(40, 256, (len(classes), 3)).tolist()
    return classes, [tuple(color) for color in palette]


def _count_classes(model: torch.nn.Module) -> int | None:
    """Returns the number of classes of a model's head, or None if it is unknown."""
    heads = dict(model.named_modules())
    names = ('bbox_head', 'roi_head.bbox_head', 'decode_head', 'head.fc')
    head = next((heads[name] for name in names if name in heads), None)
    return getattr(head, 'num_classes', getattr(head, 'out_features', None))
