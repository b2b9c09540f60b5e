"""Exported models: an ONNX file and its metadata, to be called with images."""

import json
import os
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from pvt_mm.serving.images import check_array, read_image
from pvt_mm.serving.preprocessing import preprocess
from pvt_mm.serving.result import Result, best_scores, instances, regions
from pvt_mm.utils.errors import InputError, import_errors

DETECTION = ('detection', 'instance_segmentation')
TASKS = (*DETECTION, 'semantic_segmentation', 'classification')


class OnnxModel:
    """A detector, segmentor or classifier that tools/export_onnx.py has written, to be called with images.

    It needs onnxruntime, NumPy and Pillow. Several threads may call it at the same time.

    Args:
        path: The ONNX file.
        score_thr: Minimum score of a detector's objects.
        threads: How many threads compute; 0: one for each core.

    Attributes:
        session: onnxruntime's session.
        metadata: Of the file: ``task``, ``classes``, ``palette``, ``preprocessing`` and more.
        channels: Number of channels of an image.

    Raises:
        InputError: The file is missing, no ONNX file or not a whole model of this project, or its images cannot be
            preprocessed here; or onnxruntime is not installed.
    """

    def __init__(self, path: str | os.PathLike, score_thr: float = 0.3, threads: int = 0):
        path = os.fspath(path)
        self.score_thr = score_thr
        self.session = _open(path, threads)
        self.metadata = _read_metadata(self.session, path)
        self.task, self.classes = self.metadata['task'], self.metadata['classes']
        self.channels = self.metadata['preprocessing']['channels']
        self.colors = {name: tuple(color) for name, color in zip(self.classes, self.metadata['palette'], strict=False)}
        self.outputs = [output.name for output in self.session.get_outputs()]
        self.inputs = {one.name: one for one in self.session.get_inputs()}
        self.preprocesses = self.inputs['image'].type == 'tensor(uint8)'  # in the graph

    def __call__(self, image: str | os.PathLike | BinaryIO | np.ndarray) -> Result:
        """Predicts on an image: a file, or (H, W, channels) uint8, RGB.

        Raises:
            InputError: The file cannot be read, or the model cannot take the image.
        Exception: onnxruntime's, for what is not about the image, such as too little memory.
        """
        pixels = image if isinstance(image, np.ndarray) else read_image(image, self.channels)
        (found,) = self.run([pixels])
        shown = pixels[..., :3] if self.channels >= 3 else pixels[..., :1].repeat(3, -1)
        return Result(self._objects(found), shown, self.colors)

    def run(self, images: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        """Returns the outputs for each image, (H, W, channels) uint8, RGB, in as few batches as their sizes allow.

        They are, in pixels of the image: ``boxes`` (N, 4), ``scores`` and ``labels`` (N,), best first, and ``masks``
        (N, H, W) of a detector; ``labels`` (H, W) of a segmentor; ``scores`` (classes,) of a classifier.

        Raises:
            InputError: The model cannot take an image.
        """
        prepared = [self._prepare(check_array(image, self.channels)) for image in images]
        batches: dict[Any, list[int]] = {}
        for i, (pixels, _, size) in enumerate(prepared):
            alike = pixels.shape, size if 'ori_shape' in self.inputs else None
            batches.setdefault(None if self.task in DETECTION and not self.preprocesses else alike, []).append(i)
        found: dict[int, dict] = {}
        for batch in batches.values():
            outputs = self._run([prepared[i] for i in batch])
            for row, i in enumerate(batch):
                found[i] = {name: values[row] for name, values in outputs.items()}
                if self.task in DETECTION:
                    found[i] = _without_padding(found[i], images[i].shape[:2])
        return [found[i] for i in range(len(images))]

    def _prepare(self, image: np.ndarray) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
        """Returns the input of an image, its size (h, w) without padding, and that of the image."""
        size = image.shape[:2]
        _check_thinness(size, self.metadata['preprocessing']['steps'])
        if self.preprocesses:
            return image, size, size
        pixels, shape = preprocess(image, self.metadata['preprocessing'])
        return pixels, shape, size

    def _run(self, batch: Sequence[tuple[np.ndarray, tuple[int, int], tuple[int, int]]]) -> dict[str, np.ndarray]:
        """Returns the outputs for what :meth:`_prepare` returns."""
        inputs, shapes, sizes = zip(*batch, strict=True)
        if not self.preprocesses and 'img_shape' in self.inputs:
            value = self.metadata['preprocessing']['pad_value']
            height, width = (max(one.shape[axis] for one in inputs) for axis in (1, 2))
            padded = np.full((len(inputs), len(inputs[0]), height, width), value, np.float32)
            for row, one in zip(padded, inputs, strict=True):
                row[:, : one.shape[1], : one.shape[2]] = one
            inputs = padded
        feeds = {'image': np.stack(inputs)}
        for name, values in (('img_shape', shapes), ('ori_shape', sizes)):
            if name in self.inputs:
                feeds[name] = np.array(values if self.task in DETECTION else values[0], np.int64)
        try:
            return dict(zip(self.outputs, self.session.run(self.outputs, feeds), strict=True))
        except Exception as error:
            # The other classes are, among more, of too little memory.
            if type(error).__name__ != 'InvalidArgument':  # whose module is private
                raise
            size = ' x '.join(map(str, feeds['image'].shape))
            raise InputError(f'the model cannot take an input of {size}: {" ".join(str(error).split())}') from error

    def _objects(self, found: dict[str, np.ndarray]) -> list[dict]:
        """Returns outputs as plain values."""
        if self.task == 'semantic_segmentation':
            return regions(found['labels'], self.classes)
        if self.task == 'classification':
            return best_scores(found['scores'], self.classes)
        values = (found['scores'], found['boxes'], found['labels'], found.get('masks'))
        return instances(*values, self.classes, self.score_thr)


def _open(path: str, threads: int) -> Any:
    """Opens a session in whose memory images of many sizes leave nothing."""
    with import_errors('running an ONNX file', 'onnxruntime'):
        import onnxruntime
    if not os.path.exists(path):
        raise InputError(f'{path} does not exist: name an ONNX file')
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.log_severity_level = 4  # errors are raised
    try:
        return onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    except Exception as error:  # onnxruntime's errors have no class of their own
        reason = ' '.join(str(error).split())
        version = onnxruntime.__version__
        raise InputError(f'{path} is not an ONNX file that onnxruntime {version} can run: {reason}') from None


def _read_metadata(session: Any, path: str) -> dict:
    """Returns the metadata of a file, see :class:`OnnxModel`."""
    texts = session.get_modelmeta().custom_metadata_map
    task = texts.get('task')
    if task == 'features':
        raise InputError(f'{path} is a backbone, which predicts nothing: export the whole model with --part model')
    try:
        values = {key: json.loads(texts[key]) for key in ('classes', 'palette', 'preprocessing')}
    except (KeyError, ValueError):
        values = {}
    if task not in TASKS or not values or 'image' not in {one.name for one in session.get_inputs()}:
        raise InputError(f'{path} has no metadata of pvt_mm: export the model with tools/export_onnx.py')
    if values['preprocessing'] is None:
        raise InputError(
            f"{path}: the model's test pipeline has a step that needs PyTorch: preprocess images with it, and give the "
            'arrays to onnxruntime'
        )
    return {**texts, **values}


def _check_thinness(size: tuple[int, int], steps: Sequence[dict]) -> None:
    """Raises an InputError if resizing an image of a size (h, w) makes its shorter side less than a pixel."""
    for step in steps:
        if step['type'] == 'Resize' and step['keep_ratio']:
            long, short = max(step['scale']), min(step['scale'])
            if int(min(size) * min(long / max(size), short / min(size)) + 0.5) < 1:
                raise InputError(f'the image is too thin: {size[1]} x {size[0]} pixels')


def _without_padding(found: dict[str, np.ndarray], size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Returns the detections of one image of a batch, and the part of their masks that is the image's."""
    found = {name: values[found['labels'] >= 0] for name, values in found.items()}
    if 'masks' in found:
        found['masks'] = found['masks'][:, : size[0], : size[1]]
    return found
