"""Predictions of a trained model by PyTorch, from image files to plain values, in the process of a contender."""

import contextlib
import os
import tempfile
from pathlib import Path

import cv2
import torch
from mmengine.registry import DefaultScope

from pvt_mm.analysis.benchmark.contender import FORMATS, Contender
from pvt_mm.analysis.benchmark.models import Loaded, Prepared, compile_parts, precision
from pvt_mm.analysis.benchmark.process import Stopwatch, age, used_memory
from pvt_mm.analysis.predictions import find_checkpoint
from pvt_mm.analysis.predictor import Predictor
from pvt_mm.apis.config import import_scope, load_config
from pvt_mm.apis.launch import build_model
from pvt_mm.checkpoint.reader import safe_reading
from pvt_mm.serving.images import EXTENSIONS
from pvt_mm.utils.errors import InputError


def find_images(folder: str) -> tuple[str, ...]:
    """Returns the image files of a folder and its subfolders, or raises an InputError if there is none."""
    if not os.path.isdir(folder):
        raise InputError(f'--images {folder} is not a folder')
    found = (one for one in Path(folder).rglob('*') if one.suffix.lower() in EXTENSIONS and one.is_file())
    if not (images := tuple(sorted(map(str, found)))):
        raise InputError(f'--images {folder} has no image: no file ends in {", ".join(EXTENSIONS)}')
    return images


def find_run(folder: str) -> tuple[str, str]:
    """Returns the config and the last checkpoint of a work directory.

    Raises:
        InputError: It has no checkpoint, or not one config.
    """
    configs = sorted(map(str, Path(folder).glob('*.py')))
    if len(configs) != 1:
        raise InputError(
            f'{folder} has {len(configs) or "no"} configs (.py): a work directory of tools/train.py has one'
        )
    return configs[0], find_checkpoint(folder)


def prepare_prediction(contender: Contender) -> Prepared:
    """Prepares a step that predicts on an image, as tools/demo.py does, with a work directory's weights.

    A config has random ones.
    """
    if contender.threads:
        cv2.setNumThreads(contender.threads)
    with contextlib.ExitStack() as stack:
        stack.enter_context(safe_reading())
        if os.path.isdir(contender.model):
            path, checkpoint = find_run(contender.model)
            config, size = load_config(path, contender.options), os.path.getsize(checkpoint) / 1e6
        else:
            config, size = load_config(contender.model, contender.options), None
            checkpoint = os.path.join(stack.enter_context(tempfile.TemporaryDirectory()), 'random.pth')
            import_scope(config)
            with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmengine')):
                torch.save({'state_dict': build_model(config).state_dict()}, checkpoint)
        predictor = Predictor(config, checkpoint)
    model, watch = predictor.model, Stopwatch()
    chosen = 'contiguous' if contender.memory_format == 'better' else contender.memory_format  # the data is contiguous
    model.to(memory_format=FORMATS[chosen])
    if contender.compile:
        compile_parts(model)
    memory, seconds = used_memory(contender.device), age()
    # What normalises and pads comes before the model, as it does with ONNX.
    model.forward = watch.around(model.forward)
    images = contender.images

    def step(i: int = 0) -> dict[str, float]:
        with precision(contender):
            return watch.parts(lambda: predictor(images[i % len(images)]))

    loaded = Loaded(memory and memory / 1e9, None if size is None else seconds, size)
    return Prepared(step, memory, 1, None, chosen, loaded)
