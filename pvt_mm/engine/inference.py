"""A trained model, and a picture on its way into it."""

import copy
import os

import numpy as np
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope
from torch import nn

from pvt_mm.checkpoint import read_checkpoint
from pvt_mm.engine.checks import check_checkpoint
from pvt_mm.errors import WRONG_CONFIG, InputError


def load_model(config: Config, checkpoint: str) -> nn.Module:
    """Builds the model of a config, for testing, with all of a checkpoint's weights, on a GPU where there is one.

    Raises:
        InputError: The model cannot be built, or the checkpoint cannot be read or is of another model.
    """
    init_default_scope(config.get('default_scope', 'mmengine'))
    try:
        model = MODELS.build(copy.deepcopy(config.model))
    except WRONG_CONFIG as error:
        raise InputError(f'the config cannot be built: {type(error).__name__}: {error}') from error
    load_weights(model, checkpoint)
    return revert_sync_batchnorm(model).to(get_device()).eval()


def load_weights(model: nn.Module, checkpoint: str) -> None:
    """Loads all of a checkpoint into a model that it is for.

    Raises:
        CheckpointError: It cannot be read, or is of another model.
    """
    check_checkpoint(model, checkpoint, strict=True)
    model.load_state_dict({key.removeprefix('module.'): value for key, value in read_checkpoint(checkpoint).items()})


def image_steps(config: Config) -> list:
    """Builds the steps of a config's test pipeline that are for a picture alone: all but those that load annotations.

    Raises:
        InputError: The config has none, or a step cannot be built.
    """
    init_default_scope(config.get('default_scope', 'mmengine'))
    dataset = config.get('test_dataloader', {}).get('dataset', {})
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    steps = [step for step in dataset.get('pipeline') or () if 'Annotation' not in step['type']]
    if not steps:
        raise InputError('the config has no test_dataloader.dataset.pipeline to bring a picture into the model')
    try:
        return [TRANSFORMS.build(step) for step in steps]
    except WRONG_CONFIG as error:
        raise InputError(f'the test pipeline cannot be built: {type(error).__name__}: {error}') from error


def read_picture(path: str | os.PathLike) -> np.ndarray:
    """Reads a picture as OpenCV has it, (H, W, 3) uint8 BGR, whole or not at all.

    Raises:
        InputError: It is missing, damaged, cut off, or no picture.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as picture:
            return np.ascontiguousarray(np.asarray(ImageOps.exif_transpose(picture).convert('RGB'))[..., ::-1])
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        what = 'does not exist' if not os.path.exists(path) else 'is no picture that can be read'
        raise InputError(f'{path} {what} ({type(error).__name__})') from None
