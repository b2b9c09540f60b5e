"""Predictions of a trained model on images, as plain values and drawn (Figure 7 of the paper)."""

import os

import numpy as np
import torch
from matplotlib.colors import to_rgb
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, init_default_scope
from mmengine.structures import BaseDataElement

from pvt_mm.analysis.figures import CLASS_COLORS
from pvt_mm.analysis.predictions import find_checkpoint
from pvt_mm.apis.config import innermost_dataset, load_config
from pvt_mm.apis.inference import image_steps, load_model, run_steps
from pvt_mm.apis.installed import find_config
from pvt_mm.datasets.image_io import read_image, to_bgr
from pvt_mm.serving.drawing import Color
from pvt_mm.serving.result import Result, best_scores, instances, regions
from pvt_mm.utils.errors import InputError


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
        self.classes, palette = find_classes(self.model, config, checkpoint)
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
        return Result(self._objects(sample.cpu()), to_bgr(pixels), self.colors, 'BGR')

    def _objects(self, sample: BaseDataElement) -> list[dict]:
        if 'pred_sem_seg' in sample:
            return regions(sample.pred_sem_seg.data[0].numpy(), self.classes)
        if 'pred_score' in sample:
            return best_scores(sample.pred_score.numpy(), self.classes)
        found = sample.pred_instances.numpy()
        values = (found.scores, found.bboxes, found.labels, found.get('masks'))
        return instances(*values, self.classes, self.score_thr)


def find_classes(model: torch.nn.Module, config: Config, checkpoint: str) -> tuple[list[str], list[Color]]:
    """Returns names and RGB colours of the classes of a model that was loaded from ``checkpoint``.

    Raises:
        InputError: Neither the checkpoint nor the data set of the config names them.
    """
    meta, dataset, count = model.dataset_meta, innermost_dataset(config.test_dataloader.dataset), _count_classes(model)
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
