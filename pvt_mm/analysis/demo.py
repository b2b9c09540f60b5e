"""Predictions on images and videos of the user, drawn on them and as plain values (Figure 7 of the paper)."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib.colors import to_rgb
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from mmengine.structures import BaseDataElement, PixelData
from mmengine.visualization import Visualizer
from pycocotools import mask as coco_mask
from rich.console import Console
from rich.progress import track

from pvt_mm.analysis.figures import CLASS_COLORS
from pvt_mm.apis.config import innermost_dataset
from pvt_mm.apis.inference import image_steps, load_model, run_steps
from pvt_mm.checkpoint.reader import read_file
from pvt_mm.datasets.image_io import EXTENSIONS, read_image
from pvt_mm.utils.errors import InputError
from pvt_mm.utils.files import atomic_write

VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v')
# Smaller images are enlarged to this shorter side in pixels, so that class names are readable on them.
MIN_SIDE, MAX_SIDE = 480, 20000


class Predictor:
    """A trained detector, segmentor or classifier, with the visualizer of its library.

    Boxes with a score below ``score_thr`` are neither drawn nor returned.

    Raises:
        InputError: The model or its test pipeline cannot be built, or the checkpoint is of another model.
    """

    def __init__(self, config: Config, checkpoint: str, score_thr: float = 0.3):
        self.score_thr = score_thr
        self.scope = config.get('default_scope', 'mmengine')
        self.steps = image_steps(config)[1:]
        self.model = load_model(config, checkpoint)
        dataset = innermost_dataset(config.test_dataloader.dataset)
        self.classes, palette = _classes(checkpoint, dataset, _count_classes(self.model))
        self.visualizer = _build_visualizer(self.scope)
        self.visualizer.dataset_meta = dict(classes=self.classes, palette=palette)

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, list[dict]]:
        """Predicts on an image, (H, W, 3) uint8 BGR.

        Returns:
            The image with the predictions drawn on it, BGR, enlarged if it is small; and the predictions, best first.
            A prediction has a ``label`` and, for a detector, its ``score``, ``bbox`` (x1, y1, x2, y2) in pixels of the
            image and the ``mask``, if any; for a segmentor, its ``share`` of the image and the ``mask``; for a
            classifier (the best five), the ``score``.

        Raises:
            InputError: The model cannot take the image.
        """
        packed = run_steps(self.steps, image)
        try:
            (sample,) = self.model.test_step(pseudo_collate([packed]))
        except ValueError as error:
            raise InputError(str(error)) from error
        sample = sample.cpu()
        factor = max(1, min(-(-MIN_SIDE // min(image.shape[:2])), MAX_SIDE // max(image.shape[:2])))
        canvas = cv2.resize(image[..., ::-1], None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
        if self.scope == 'mmengine':
            predictions = self._scores(canvas, sample.pred_score.numpy())
        elif self.scope == 'mmseg':
            predictions = self._regions(sample)
            self.visualizer.add_datasample('', canvas, _enlarge(sample, factor), draw_gt=False)
        else:
            instances = sample.pred_instances[sample.pred_instances.scores >= self.score_thr]
            sample.pred_instances = instances[instances.scores.argsort()]  # the best are drawn last, on top
            predictions = self._instances(sample)
            self.visualizer.add_datasample('', canvas, _enlarge(sample, factor), draw_gt=False, pred_score_thr=0)
        return np.ascontiguousarray(self.visualizer.get_image()[..., ::-1]), predictions

    def _instances(self, sample: BaseDataElement) -> list[dict]:
        predictions = []
        for found in reversed(sample.pred_instances):
            score, box = round(found.scores.item(), 4), [round(x, 2) for x in found.bboxes[0].tolist()]
            masks = {'mask': encode_mask(found.masks[0].numpy())} if 'masks' in found else {}
            predictions.append(dict(label=self.classes[found.labels], score=score, bbox=box, **masks))
        return predictions

    def _regions(self, sample: BaseDataElement) -> list[dict]:
        regions, predictions = sample.pred_sem_seg.data[0].numpy(), []
        for label in np.unique(regions):
            mask = regions == label
            share = round(mask.mean().item(), 4)
            predictions.append(dict(label=self.classes[label], share=share, mask=encode_mask(mask)))
        return sorted(predictions, key=lambda one: -one['share'])

    def _scores(self, canvas: np.ndarray, scores: np.ndarray) -> list[dict]:
        best = scores.argsort()[::-1][:5]
        predictions = [dict(label=self.classes[i], score=round(float(scores[i]), 4)) for i in best]
        size = max(min(canvas.shape[:2]) // 24, 12)
        text = '\n'.join(f'{one["score"]:6.1%}  {one["label"]}' for one in predictions)
        style = dict(font_sizes=size, colors='white', font_families='monospace')
        boxed = dict(facecolor='black', edgecolor='none', alpha=0.7, pad=size / 3)
        self.visualizer.set_image(canvas)
        self.visualizer.draw_texts(text, torch.tensor([[size, size]]), bboxes=boxed, **style)
        return predictions


def _build_visualizer(scope: str) -> Visualizer:
    if scope == 'mmdet':
        from mmdet.visualization import DetLocalVisualizer

        return DetLocalVisualizer()
    if scope == 'mmseg':
        from mmseg.visualization import SegLocalVisualizer

        return SegLocalVisualizer(alpha=0.5)  # the image is visible through the map
    return Visualizer()


def _classes(checkpoint: str, dataset: dict, count: int | None) -> tuple[list[str], list[tuple]]:
    """Returns names and RGB colours of ``count`` classes, from the checkpoint or else from the data set's config."""
    meta = (read_file(checkpoint).get('meta') or {}).get('dataset_meta') or {}
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
    if not isinstance(palette, (list, tuple)):
        palette = np.random.default_rng(0).integers(40, 256, (len(classes), 3)).tolist()
    return classes, [tuple(color) for color in palette]


def _count_classes(model: torch.nn.Module) -> int | None:
    """Returns the number of classes of a model's head, or None if it is unknown."""
    heads = dict(model.named_modules())
    names = ('bbox_head', 'roi_head.bbox_head', 'decode_head', 'head.fc')
    head = next((heads[name] for name in names if name in heads), None)
    return getattr(head, 'num_classes', getattr(head, 'out_features', None))


def _enlarge(sample: BaseDataElement, factor: int) -> BaseDataElement:
    """Returns a copy of a sample for an image enlarged by an integer factor."""
    sample = sample.clone()
    if 'pred_sem_seg' in sample:
        sample.pred_sem_seg = PixelData(data=_repeat(sample.pred_sem_seg.data, factor))
    if 'pred_instances' in sample:
        instances = sample.pred_instances
        instances.bboxes = instances.bboxes * factor
        if 'masks' in instances:
            instances.masks = _repeat(instances.masks, factor)
    return sample


def _repeat(maps: torch.Tensor, factor: int) -> torch.Tensor:
    return maps.repeat_interleave(factor, -1).repeat_interleave(factor, -2)


def encode_mask(mask: np.ndarray) -> dict:
    """Returns a mask (H, W) as COCO's compressed run lengths, in values that JSON can hold."""
    coded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return dict(size=coded['size'], counts=coded['counts'].decode())


def find_inputs(what: str, out: Path) -> list[Path]:
    """Lists the images of a folder and its subfolders except ``out``; a file is listed alone.

    Raises:
        InputError: There is none, or ``out`` is the folder of the images.
    """
    path = Path(what)
    if not path.exists():
        raise InputError(f'{path} does not exist: name an image, a video or a folder of images')
    if out.exists() and not out.is_dir():
        raise InputError(f'--out {out} is a file: name a folder')
    folder = path if path.is_dir() else path.parent
    if out.resolve() == folder.resolve():
        raise InputError(f'--out {out} is the folder of the images, which would be overwritten: name another')
    if path.is_file():
        return [path]
    images = (one for one in sorted(path.rglob('*')) if one.suffix.lower() in EXTENSIONS and one.is_file())
    found = [one for one in images if out.resolve() not in one.resolve().parents]
    if not found:
        raise InputError(f'{path} has no image: no file ends in {", ".join(EXTENSIONS)}')
    return found


def run_images(predictor: Predictor, paths: list[Path], root: Path, out: Path) -> tuple[dict[str, list], list[str]]:
    """Writes images with predictions drawn on them to a folder, under their names relative to ``root``.

    Returns:
        The predictions by these names; and one line for each image that was skipped, with the reason.
    """
    found, skipped = {}, []
    bar = dict(console=Console(stderr=True), transient=True, disable=len(paths) == 1)
    for path in track(paths, 'predicting', **bar):
        name = path.relative_to(root).as_posix()
        try:
            drawn, predictions = predictor(read_image(path))
        except InputError as error:
            skipped.append(str(error) if str(path) in str(error) else f'{path}: {error}')
            continue
        suffix = path.suffix.lower() if path.suffix.lower() in ('.jpg', '.jpeg', '.png') else '.jpg'
        with atomic_write(out / (name if path.suffix.lower() == suffix else name + suffix)) as temporary:
            temporary.write_bytes(cv2.imencode(suffix, drawn)[1].tobytes())
        found[name] = predictions
    return found, skipped


def run_video(predictor: Predictor, path: Path, out: Path) -> list[list[dict]]:
    """Writes a video with predictions drawn on it to a folder, under its name, as MPEG-4; returns those of each frame.

    Raises:
        InputError: The video cannot be read.
    """
    reader = cv2.VideoCapture(str(path))
    count, fps = int(reader.get(cv2.CAP_PROP_FRAME_COUNT)), reader.get(cv2.CAP_PROP_FPS) or 25.0
    found, writer = [], None
    with atomic_write(out / f'{path.stem}.mp4') as temporary:
        part = temporary.with_suffix('.mp4')  # OpenCV chooses the format by the suffix
        try:
            for frame in track(_frames(reader), 'predicting', count, console=Console(stderr=True), transient=True):
                drawn, predictions = predictor(frame)
                if writer is None:
                    size = (drawn.shape[1], drawn.shape[0])
                    writer = cv2.VideoWriter(str(part), cv2.VideoWriter_fourcc(*'mp4v'), fps, size)
                writer.write(drawn)
                found.append(predictions)
            if writer is None:
                raise InputError(f'{path} is truncated or not a video')
            writer.release()
            part.replace(temporary)
        finally:
            part.unlink(missing_ok=True)
            reader.release()
    return found


def _frames(reader: cv2.VideoCapture) -> Iterator[np.ndarray]:
    while (frame := reader.read()[1]) is not None:
        yield frame
