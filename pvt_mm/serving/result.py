"""What a model predicts on an image: plain values, drawn and saved."""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from pvt_mm.serving.drawing import Color, draw
from pvt_mm.serving.run_lengths import encode
from pvt_mm.utils.errors import InputError
from pvt_mm.utils.files import atomic_write

# How a drawn image is written, by its suffix.
SAVING = {
    '.jpg': dict(format='JPEG', quality=95),
    '.jpeg': dict(format='JPEG', quality=95),
    '.png': dict(format='PNG', compress_level=1),
}


@dataclass(frozen=True)
class Result:
    """The predictions on an image.

    Attributes:
        objects: A dict for each, best first, of plain values. It has a ``label`` and, of a detector, its ``score``,
            ``bbox`` (x1, y1, x2, y2) in pixels of the image and the ``mask``, if any; of a segmentor, its ``share`` of
            the image and the ``mask``; of a classifier (the best five), the ``score``. Masks are in COCO's compressed
            run lengths.
        image: (H, W, 3) uint8.
        colors: RGB, by label.
        order: Of the channels of ``image`` and of :meth:`draw`, ``RGB`` or ``BGR``: that of the model's arrays.
    """

    objects: list[dict]
    image: np.ndarray = field(repr=False)
    colors: dict[str, Color] = field(repr=False)
    order: str = field(default='RGB', repr=False)

    def draw(self) -> np.ndarray:
        """Returns the image, (H, W, 3) uint8, with the objects drawn on it, enlarged if it is small.

        Regions of a segmentor whose share is 0.00 in two digits are left out.
        """
        shown = [one for one in self.objects if round(one.get('share', 1), 2)]
        drawn = draw(self._reordered(self.image), shown, self.colors)
        return np.ascontiguousarray(self._reordered(drawn))

    def save(self, path: str | os.PathLike) -> None:
        """Writes the image with the objects drawn on it.

        Raises:
            InputError: The name does not end in .jpg, .jpeg or .png, or the image is too large for a JPEG.
        """
        suffix = Path(path).suffix.lower()
        if suffix not in SAVING:
            raise InputError(f'{path} is not the name of an image: it must end in {", ".join(SAVING)}')
        content = io.BytesIO()
        try:
            Image.fromarray(self._reordered(self.draw())).save(content, **SAVING[suffix])
        except (OSError, ValueError) as error:
            raise InputError(f'{path} cannot be written as {suffix[1:]}: {" ".join(str(error).split())}') from None
        with atomic_write(path) as temporary:
            temporary.write_bytes(content.getvalue())

    def _reordered(self, image: np.ndarray) -> np.ndarray:
        """Returns an RGB image in ``order``, or one in ``order`` as RGB."""
        return image if self.order == 'RGB' else image[..., ::-1]


def instances(
    scores: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    masks: np.ndarray | None,
    classes: Sequence[str],
    score_thr: float,
) -> list[dict]:
    """Returns the objects of a detector, best first.

    Args:
        scores: (N,).
        boxes: (N, 4): x1, y1, x2, y2 in pixels of the image.
        labels: (N,), indices of ``classes``.
        masks: (N, H, W), or None.
        classes: The names.
        score_thr: The minimum score.
    """
    kept = np.flatnonzero(scores >= score_thr)
    objects = []
    for i in kept[np.argsort(-scores[kept], kind='stable')]:
        score, box = round(scores[i].item(), 4), [round(x, 2) for x in boxes[i].tolist()]
        mask = {} if masks is None else {'mask': encode(masks[i])}
        objects.append(dict(label=classes[labels[i]], score=score, bbox=box, **mask))
    return objects


def regions(labels: np.ndarray, classes: Sequence[str]) -> list[dict]:
    """Returns the share and the mask of each class in a label map (H, W), the largest first."""
    objects = []
    for label in np.unique(labels):
        mask = labels == label
        objects.append(dict(label=classes[label], share=round(mask.mean().item(), 4), mask=encode(mask)))
    return sorted(objects, key=lambda one: -one['share'])


def best_scores(scores: np.ndarray, classes: Sequence[str]) -> list[dict]:
    """Returns the five best of the scores (classes,) of a classifier, the best first."""
    return [dict(label=classes[i], score=round(scores[i].item(), 4)) for i in scores.argsort()[::-1][:5]]
