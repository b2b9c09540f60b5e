"""A config's test pipeline in NumPy and Pillow, from the plain values of :mod:`pvt_mm.deploy.preprocessing`."""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from pvt_mm.utils.errors import InputError


def preprocess(image: np.ndarray, preprocessing: dict) -> tuple[np.ndarray, tuple[int, int]]:
    """Resizes, crops, normalises and pads an image as the test pipeline and the data preprocessor do, to the bit.

    Args:
        image: (H, W, C) uint8, the first three channels in RGB order.
        preprocessing: The value of that name in the metadata of an exported model.

    Returns:
        The input of the model, float32 (C, h, w), and its height and width before it is padded.

    Raises:
        InputError: The image is not uint8, has other channels, or is so thin that a side is less than a pixel.
    """
    channels = preprocessing['channels']
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != channels:
        raise InputError(
            f'the image is {image.dtype} {image.shape}, and the model takes uint8 (H, W, {channels}): convert it'
        )
    for step in preprocessing['steps']:
        image = STEPS[step['type']](image, step)
    order = [2, 1, 0, *range(3, channels)] if preprocessing['order'] == 'BGR' and channels >= 3 else slice(None)
    pixels = np.ascontiguousarray(image.transpose(2, 0, 1)[order], np.float32)
    if preprocessing['mean'] is not None:
        mean, std = (np.array(preprocessing[name], np.float32).reshape(-1, 1, 1) for name in ('mean', 'std'))
        pixels -= mean
        pixels /= std
    height, width = size = image.shape[:2]
    more = padding(height, width, preprocessing)
    return np.pad(pixels, ((0, 0), *((0, n) for n in more)), constant_values=preprocessing['pad_value']), size


def padding(height: int, width: int, preprocessing: dict) -> tuple[int, int]:
    """Returns the rows below and the columns to the right that pad an image of a size."""
    if preprocessing['pad_size']:
        least_height, least_width = preprocessing['pad_size']
        return max(least_height - height, 0), max(least_width - width, 0)
    return -height % preprocessing['pad_divisor'], -width % preprocessing['pad_divisor']


def _resize(image: np.ndarray, step: dict) -> np.ndarray:
    """MMCV's ``Resize``; ``scale`` is (w, h), with ``keep_ratio`` the longer and the shorter side at most."""
    H, W = image.shape[:2]
    width, height = step['scale']
    if step['keep_ratio']:
        factor = min(max(step['scale']) / max(H, W), min(step['scale']) / min(H, W))
        width, height = int(W * factor + 0.5), int(H * factor + 0.5)
    if min(width, height) < 1:
        raise InputError(f'{W} x {H} pixels are too thin: resizing makes the shorter side less than a pixel')
    resize = resize_bilinear if step['backend'] == 'cv2' else _resize_with_pillow
    return resize(image, width, height)


def _resize_to_multiple(image: np.ndarray, step: dict) -> np.ndarray:
    """MMSegmentation's ``ResizeToMultiple``."""
    height, width = (math.ceil(side / step['size_divisor']) * step['size_divisor'] for side in image.shape[:2])
    return resize_bilinear(image, width, height)


def _center_crop(image: np.ndarray, step: dict) -> np.ndarray:
    """MMCV's ``CenterCrop``: a side that is less than ``crop_size`` (w, h) stays as it is."""
    (H, W), (width, height) = image.shape[:2], step['crop_size']
    width, height = min(W, width), min(H, height)
    x, y = round((W - width) / 2), round((H - height) / 2)
    return image[y : y + height, x : x + width]


STEPS: dict[str, Callable[[np.ndarray, dict], np.ndarray]] = {
    'Resize': _resize,
    'ResizeToMultiple': _resize_to_multiple,
    'CenterCrop': _center_crop,
}


def resize_bilinear(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Returns a uint8 image (H, W, C) resized as OpenCV's ``INTER_LINEAR`` does, in integers.

    With two channels, or more than four, OpenCV rounds a half to even where both sides are halved exactly; this rounds
    it up.
    """
    H, W, C = image.shape
    left, right, w0, w1 = _taps(W, width)
    # NOTE: at the left and right border OpenCV gives the outermost pixel all the weight, at the others both weights.
    outside = (left < 0) | (left >= W - 1)
    w0[outside], w1[outside] = 2048, 0
    left, right = left.clip(0, W - 1), right.clip(0, W - 1)
    top, bottom, h0, h1 = _taps(H, height)
    used, index = np.unique(np.concatenate((top, bottom)).clip(0, H - 1), return_inverse=True)
    top, bottom = np.split(index, 2)

    lines = image[used].transpose(1, 0, 2).reshape(W, -1)  # (W, rows x C)
    columns = np.empty((width, lines.shape[1]), np.int16)
    for i in _blocks(width):
        columns[i] = (lines[left[i]] * w0[i, None] + lines[right[i]] * w1[i, None]) >> 4
    lines = np.ascontiguousarray(columns.T).reshape(len(used), -1)  # (rows, C x width)
    rows = np.empty((height, lines.shape[1]), np.uint8)
    for i in _blocks(height):
        rows[i] = ((lines[top[i]] * h0[i, None] >> 16) + (lines[bottom[i]] * h1[i, None] >> 16) + 2) >> 2
    return rows.reshape(height, C, width).transpose(0, 2, 1)


def _blocks(length: int) -> list[slice]:
    """Returns slices of 16 lines, of which the intermediate values fit into a processor's cache."""
    return [slice(i, i + 16) for i in range(0, length, 16)]


def _taps(length: int, resized: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns the indices of the two pixels that each resized one is between, and their weights in 1/2048, int32."""
    scale = 1 / (resized / length)  # as OpenCV rounds it
    position = ((np.arange(resized) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(position)
    fraction = position - first
    weights = (np.rint(part * np.float32(2048)).astype(np.int32) for part in (np.float32(1) - fraction, fraction))
    first = first.astype(np.int32)
    return first, first + 1, *weights


def _resize_with_pillow(image: np.ndarray, width: int, height: int) -> np.ndarray:
    pixels = image[..., 0] if image.shape[2] == 1 else image
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized).reshape(height, width, -1)
