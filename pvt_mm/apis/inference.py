"""Loading a trained model and the test pipeline of its config."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import TRANSFORMS, init_default_scope
from torch import nn

from pvt_mm.apis.channel_checks import check_channels
from pvt_mm.apis.config import import_scope, innermost_dataset
from pvt_mm.apis.launch import build_model
from pvt_mm.apis.weight_checks import check_content
from pvt_mm.checkpoint.reader import read_file
from pvt_mm.utils.errors import InputError, config_errors


def load_model(config: Config, checkpoint: str) -> nn.Module:
    """Builds the model of a config in eval mode with the weights of a checkpoint, on a GPU if there is one.

    As MMDetection's ``init_detector`` does, it sets ``dataset_meta`` of the model, see :func:`dataset_meta`.

    Raises:
        InputError: The model cannot be built, or the checkpoint cannot be read or does not match the model.
    """
    check_channels(config)
    import_scope(config)
    init_default_scope(config.get('default_scope', 'mmengine'))
    model = build_model(config)
    content = read_file(checkpoint)
    model.load_state_dict(check_content(model, content, checkpoint, strict=True))
    model.dataset_meta = dataset_meta(content)
    return revert_sync_batchnorm(model).to(get_device()).eval()


def dataset_meta(content: Mapping) -> dict:
    """Returns what a checkpoint's content says of the data of its training: ``classes`` and ``palette``, if known.

    MMDetection 2 and MMSegmentation 0 have them as ``CLASSES`` and ``PALETTE`` in ``meta`` itself.
    """
    meta = content.get('meta') or {}
    found = meta.get('dataset_meta') or {key: meta[key] for key in ('CLASSES', 'PALETTE') if key in meta}
    return {key.lower(): value for key, value in found.items()}


def image_steps(config: Config) -> list:
    """Builds the transforms of a config's test pipeline, without those that load annotations.

    Raises:
        InputError: It is missing, cannot be built, or loads another number of channels than the model takes.
    """
    check_channels(config, 'test')
    init_default_scope(config.get('default_scope', 'mmengine'))
    dataset = innermost_dataset(config.get('test_dataloader', {}).get('dataset', {}))
    steps = [step for step in dataset.get('pipeline') or () if 'Annotation' not in step['type']]
    if not steps:
        raise InputError('test_dataloader.dataset.pipeline is not set in the config: it turns an image into an input')
    with config_errors('the test pipeline cannot be built'):
        return [TRANSFORMS.build(step) for step in steps]


def run_steps(steps: Sequence, image: np.ndarray, path: str = '') -> dict:
    """Runs the transforms of :func:`image_steps` that follow the one that loads on an image.

    Args:
        steps: The transforms.
        image: (H, W) or (H, W, C), as the transform that loads returns it.
        path: Its file, if there is one.

    Raises:
        InputError: A transform cannot take the image.
    """
    height, width = shape = image.shape[:2]
    results = dict(img=image, img_path=path, img_id=0, img_shape=shape, ori_shape=shape, height=height, width=width)
    for step in steps:
        name = type(step).__name__
        try:
            with config_errors('the test pipeline cannot take a single image'):
                results = step(results)
        except (cv2.error, ValueError) as error:  # OpenCV's, and Pillow's in an InputError
            if 'Resize' not in name or max(width, height) < 2 * min(width, height):
                raise
            raise InputError(
                f'{width} x {height} pixels are too thin for the test pipeline: its {name} makes the shorter side less '
                'than a pixel'
            ) from error
    return results
