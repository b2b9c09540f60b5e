"""Predictions on pictures and videos of one's own, drawn on them and as plain values (Figure 7 of the paper)."""

import copy
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib.colors import to_rgb
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, init_default_scope
from mmengine.structures import BaseDataElement, PixelData
from mmengine.visualization import Visualizer
from pycocotools import mask as coco_mask
from rich.console import Console
from rich.progress import track

from pvt_mm.analysis.predictions import COLORS
from pvt_mm.checkpoint import read_file
from pvt_mm.datasets.image_folder import EXTENSIONS
from pvt_mm.engine.inference import image_steps, load_model, read_picture
from pvt_mm.errors import WRONG_CONFIG, InputError
from pvt_mm.files import whole_file

VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v')
# Pictures are drawn on at so many pixels of their shorter side at least: names are not readable on less.
LEAST_SIDE, MOST_SIDE = 480, 20000


class Predictor:
    """A trained detector, segmentor or classifier, behind MMDetection's or MMSegmentation's inferencer or alone.

    Args:
        config: Of the model.
        checkpoint: All of its weights; read without running anything in it.
        score_thr: The least score of a box that is drawn and returned.

    Raises:
        InputError: The model cannot be built, the checkpoint is of another one, or the test pipeline is for no picture.
    """

    def __init__(self, config: Config, checkpoint: str, score_thr: float = 0.3):
        config = copy.deepcopy(config)
        self.scope = config.get('default_scope', 'mmengine')
        init_default_scope(self.scope)
        image_steps(config)  # says what is wrong with the pipeline
        dataset = config.test_dataloader.dataset
        while 'dataset' in dataset:
            dataset = dataset.dataset
        dataset.pipeline = [step for step in dataset.pipeline if 'Annotation' not in step['type']]
        config.test_dataloader.dataset = dataset
        self.score_thr = score_thr
        model = load_model(config, checkpoint)
        self.classes, palette = _classes(checkpoint, dataset, _count_classes(model))
        model.dataset_meta = dict(classes=self.classes, palette=palette)
        if self.scope == 'mmengine':
            self.steps, self.model, self.visualizer = image_steps(config)[1:], model, Visualizer()
            return
        try:
            self.inferencer = _inferencer(self.scope, config, model)
        except (*WRONG_CONFIG, IndexError) as error:
            raise InputError(f'no inferencer can be built: {type(error).__name__}: {error}') from error
        self.visualizer = self.inferencer.visualizer
        self.visualizer.dataset_meta = model.dataset_meta
        if self.scope == 'mmseg':
            self.visualizer.alpha = 0.5  # the picture is seen through the map

    @torch.no_grad()
    def __call__(self, picture: np.ndarray) -> tuple[np.ndarray, list[dict]]:
        """Predicts on a picture.

        Args:
            picture: (H, W, 3) uint8 BGR.

        Returns:
            The picture with the predictions on it, BGR, enlarged if it is small; and the predictions, best first: a
            ``label`` and, of a detector, its ``score``, ``bbox`` (x1, y1, x2, y2) in pixels of the picture and, where
            there are any, ``mask``; of a segmentor, the ``share`` of the picture and the ``mask``; of a classifier, the
            ``score``, of the best five.

        Raises:
            InputError: The model cannot take the picture.
        """
        try:
            sample = self._predict(picture)
        except ValueError as error:
            raise InputError(str(error)) from error
        factor = max(1, min(-(-LEAST_SIDE // min(picture.shape[:2])), MOST_SIDE // max(picture.shape[:2])))
        image = cv2.resize(picture[..., ::-1], None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
        if self.scope == 'mmengine':
            return self._scores(image, sample.pred_score.cpu().numpy())
        if self.scope == 'mmseg':
            found = self._regions(sample)
        else:
            instances = sample.pred_instances[sample.pred_instances.scores >= self.score_thr]
            sample.pred_instances = instances[instances.scores.argsort()]  # the best are drawn last
            found = self._instances(sample)
        flags = {} if self.scope == 'mmseg' else dict(pred_score_thr=self.score_thr)
        self.visualizer.add_datasample('picture', image, _enlarged(sample, factor), draw_gt=False, **flags)
        return np.ascontiguousarray(self.visualizer.get_image()[..., ::-1]), found

    def _predict(self, picture: np.ndarray) -> BaseDataElement:
        if self.scope == 'mmengine':
            results = dict(img=picture, ori_shape=picture.shape[:2], img_shape=picture.shape[:2])
            for step in self.steps:
                results = step(results)
            (sample,) = self.model.test_step(pseudo_collate([results]))
            return sample.cpu()
        data = next(iter(self.inferencer.preprocess([picture])))
        (sample,) = self.inferencer.forward(data[1] if self.scope == 'mmdet' else data)
        return sample.cpu()

    def _instances(self, sample: BaseDataElement) -> list[dict]:
        instances, found = sample.pred_instances, []
        for i, (label, score, box) in enumerate(zip(instances.labels, instances.scores, instances.bboxes, strict=True)):
            one = dict(label=self.classes[label], score=round(float(score), 4), bbox=[round(float(x), 2) for x in box])
            if 'masks' in instances:
                one['mask'] = run_lengths(instances.masks[i].numpy())
            found.append(one)
        return found[::-1]

    def _regions(self, sample: BaseDataElement) -> list[dict]:
        regions, found = sample.pred_sem_seg.data[0].numpy(), []
        for label in np.unique(regions):
            mask = regions == label
            found.append(dict(label=self.classes[label], share=round(mask.mean().item(), 4), mask=run_lengths(mask)))
        return sorted(found, key=lambda one: -one['share'])

    def _scores(self, image: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, list[dict]]:
        best = scores.argsort()[::-1][:5]
        found = [dict(label=self.classes[i], score=round(float(scores[i]), 4)) for i in best]
        size = max(min(image.shape[:2]) // 24, 12)
        self.visualizer.set_image(image)
        text = '\n'.join(f'{one["score"]:6.1%}  {one["label"]}' for one in found)
        boxed = dict(facecolor='black', edgecolor='none', alpha=0.7, pad=size / 3)
        place = torch.tensor([[size, size]])
        self.visualizer.draw_texts(
            text, place, font_sizes=size, colors='white', bboxes=boxed, font_families='monospace'
        )
        return np.ascontiguousarray(self.visualizer.get_image()[..., ::-1]), found


def _inferencer(scope: str, config: Config, model: torch.nn.Module) -> object:
    """Returns MMDetection's or MMSegmentation's inferencer around a model, which it neither builds nor loads."""
    if scope == 'mmdet':
        from mmdet.apis import DetInferencer as Inferencer
    else:
        from mmseg.apis import MMSegInferencer as Inferencer

    class Loaded(Inferencer):
        def _init_model(self, cfg: Config, weights: None, device: str) -> torch.nn.Module:
            return model

    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('ERROR')  # it warns of a registry that it does not need
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # and of a palette that it is given afterwards
            return Loaded(config, scope=scope, show_progress=False)
    finally:
        logger.setLevel(level)


def _classes(checkpoint: str, dataset: dict, count: int | None) -> tuple[list[str], list | str]:
    """Returns the names of ``count`` classes, by the checkpoint or else by the data set, and their colours."""
    meta = (read_file(checkpoint).get('meta') or {}).get('dataset_meta') or {}
    try:
        known = DATASETS.build({**dataset, 'lazy_init': True}).metainfo
    except Exception:  # the data need not be here
        known = {}
    named = [one.get('classes') or () for one in (meta, known, dataset.get('metainfo', {}))]
    classes = next((list(names) for names in named if names and count in (None, len(names))), None)
    if not classes:
        others = ''.join(f', but {len(names)} others' for names in named[:1] if names)
        which = f'the {count} classes{others}' if count else 'the classes'
        raise InputError(f'{checkpoint} does not name {which}: set test_dataloader.dataset.metainfo.classes')
    palette = meta.get('palette') or known.get('palette')
    if len(classes) <= len(COLORS):
        palette = [tuple(round(255 * part) for part in to_rgb(color)) for color in COLORS[: len(classes)]]
    if not isinstance(palette, (list, tuple)):
        palette = np.random.default_rng(0).integers(40, 256, (len(classes), 3)).tolist()
    return classes, [tuple(color) for color in palette]


def _count_classes(model: torch.nn.Module) -> int | None:
    """Returns how many classes a model's head tells apart; None where it does not say."""
    heads = dict(model.named_modules())
    names = ('bbox_head', 'roi_head.bbox_head', 'decode_head', 'head.fc')
    head = next((heads[name] for name in names if name in heads), None)
    return getattr(head, 'num_classes', getattr(head, 'out_features', None))


def _enlarged(sample: BaseDataElement, factor: int) -> BaseDataElement:
    """Returns a sample as it is on a picture of ``factor`` times the size."""
    sample = sample.clone()
    if 'pred_sem_seg' in sample:
        sample.pred_sem_seg = PixelData(data=_repeated(sample.pred_sem_seg.data, factor))
    if 'pred_instances' in sample:
        instances = sample.pred_instances
        instances.bboxes = instances.bboxes * factor
        if 'masks' in instances:
            instances.masks = _repeated(instances.masks, factor)
    return sample


def _repeated(maps: torch.Tensor, factor: int) -> torch.Tensor:
    return maps.repeat_interleave(factor, -1).repeat_interleave(factor, -2)


def run_lengths(mask: np.ndarray) -> dict:
    """Returns a mask (H, W) as COCO's compressed run lengths, as JSON can have them."""
    coded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return dict(size=coded['size'], counts=coded['counts'].decode())


# ------------------------------------------------------------------------------------------------------------- files


def find_inputs(what: str, out: Path) -> list[Path]:
    """Lists the pictures, or the one video, of a file or of a folder and all below it but ``out``.

    Raises:
        InputError: There is none, or ``out`` is where they are.
    """
    path = Path(what)
    if not path.exists():
        raise InputError(f'{path} does not exist: give a picture, a video or a folder of pictures')
    if out.exists() and not out.is_dir():
        raise InputError(f'--out {out} is a file: name a folder')
    folder = path if path.is_dir() else path.parent
    if out.resolve() == folder.resolve():
        raise InputError(f'--out {out} is the folder of the pictures, which would be overwritten: name another')
    if path.is_file():
        return [path]
    found = [
        one
        for one in sorted(path.rglob('*'))
        if one.suffix.lower() in EXTENSIONS and one.is_file() and out.resolve() not in one.resolve().parents
    ]
    if not found:
        raise InputError(f'{path} holds no picture: none ends in {", ".join(EXTENSIONS)}')
    return found


def run_pictures(predictor: Predictor, paths: list[Path], root: Path, out: Path) -> tuple[dict[str, list], list[str]]:
    """Draws the predictions on pictures into a folder, under their names below ``root``.

    Returns:
        The predictions by these names; and a line for each picture that cannot be read or taken, which says why.
    """
    found, refused = {}, []
    bar = dict(console=Console(stderr=True), transient=True, disable=len(paths) == 1)
    for path in track(paths, 'predicting', **bar):
        name = path.relative_to(root).as_posix()
        try:
            drawn, found_here = predictor(read_picture(path))
        except InputError as error:
            refused.append(str(error) if str(path) in str(error) else f'{path}: {error}')
            continue
        suffix = path.suffix.lower() if path.suffix.lower() in ('.jpg', '.jpeg', '.png') else '.jpg'
        target = out / (name if path.suffix.lower() == suffix else name + suffix)
        _write(target, cv2.imencode(suffix, drawn)[1].tobytes())
        found[name] = found_here
    return found, refused


def run_video(predictor: Predictor, path: Path, out: Path) -> list[list[dict]]:
    """Draws the predictions on every frame of a video into one of its name, as MPEG-4.

    Returns:
        The predictions, one list a frame.

    Raises:
        InputError: It cannot be read, or the video cannot be written.
    """
    reader = cv2.VideoCapture(str(path))
    count, fps = int(reader.get(cv2.CAP_PROP_FRAME_COUNT)), reader.get(cv2.CAP_PROP_FPS) or 25.0
    found, writer = [], None
    target = out / f'{path.stem}.mp4'
    try:
        with whole_file(target) as beside:
            part = beside.with_suffix('.mp4')  # which the writer goes by
            try:
                frames = track(_frames(reader), 'predicting', count, console=Console(stderr=True), transient=True)
                for frame in frames:
                    drawn, found_here = predictor(frame)
                    if writer is None:
                        size = (drawn.shape[1], drawn.shape[0])
                        writer = cv2.VideoWriter(str(part), cv2.VideoWriter_fourcc(*'mp4v'), fps, size)
                    writer.write(drawn)
                    found.append(found_here)
                if writer is None:
                    raise InputError(f'{path} is no video that can be read')
                writer.release()
                part.replace(beside)
            finally:
                part.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f'{target} cannot be written: {error.strerror or error}') from None
    finally:
        reader.release()
    return found


def _frames(reader: cv2.VideoCapture) -> Iterator[np.ndarray]:
    while True:
        read, frame = reader.read()
        if not read:
            return
        yield frame


def write_predictions(path: Path, content: dict) -> None:
    """Writes predictions as JSON, whole or not at all.

    Raises:
        InputError: The file cannot be written.
    """
    _write(path, (json.dumps(content) + '\n').encode())


def _write(path: Path, content: bytes) -> None:
    try:
        with whole_file(path) as beside:
            beside.write_bytes(content)
    except OSError as error:
        raise InputError(f'{path} cannot be written: {error.strerror or error}') from None
