"""Reading images as training does, and what to do with those that are missing, truncated or not images.

They are an :class:`InputError` that names them. Only training may skip some (:mod:`pvt_mm.engine.loading`).
"""

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine.registry import TRANSFORMS
from PIL import Image

from pvt_mm.serving.images import EXTENSIONS
from pvt_mm.utils.errors import InputError, config_errors

# A transform that loads the image of ``img_path`` as ``img``.
Loader = Callable[[dict], dict | None]

# The last bytes of an image file, after which only padding may come.
_ENDS = {'.jpg': b'\xff\xd9', '.jpeg': b'\xff\xd9', '.jfif': b'\xff\xd9', '.png': b'IEND\xaeB`\x82'}


def build_loader(pipeline: Sequence[dict] = ()) -> Loader:
    """Builds the first transform of a pipeline, which loads the image; MMCV's ``LoadImageFromFile`` if it is empty.

    Raises:
        InputError: It cannot be built.
    """
    with config_errors('the transform that loads images cannot be built'):
        return TRANSFORMS.build(pipeline[0]) if pipeline else LoadImageFromFile()


def loader_of(dataset: object) -> Loader:
    """Returns the first transform of a built data set, or of the first one in wrappers such as ConcatDataset."""
    while not hasattr(dataset, 'pipeline') and (inner := getattr(dataset, 'dataset', getattr(dataset, 'datasets', 0))):
        dataset = inner[0] if isinstance(inner, (list, tuple)) else inner
    steps = getattr(getattr(dataset, 'pipeline', None), 'transforms', ())
    return steps[0] if steps else LoadImageFromFile()


def read_image(path: str | os.PathLike, load: Loader | None = None) -> np.ndarray:
    """Returns the pixels of an image as the pipeline that begins with ``load`` sees them.

    Without ``load`` that is MMCV's ``LoadImageFromFile`` with its defaults: OpenCV, (H, W, 3) uint8 BGR.

    Raises:
        InputError: The file is missing, truncated, not an image, or of a format that ``load`` cannot read.
    """
    path = os.fspath(path)
    load = load or LoadImageFromFile()
    if fault := _find_truncation(path):
        raise InputError(fault)
    try:
        with _silent_opencv():
            return load({'img_path': path})['img']
    except Exception as error:  # decoders raise anything
        raise InputError(_describe(path, error, load)) from None


def to_bgr(image: np.ndarray) -> np.ndarray:
    """Returns an image of :func:`read_image` to draw on: (H, W, 3) uint8 BGR, of any number of channels and type.

    Grey is repeated, and only the first three of more channels are drawn. Values other than 8 bits are scaled from the
    range of the image.
    """
    image = np.atleast_3d(image)[..., :3]
    image = image if image.shape[2] == 3 else image[..., :1].repeat(3, -1)
    if image.dtype != np.uint8:
        image = np.nan_to_num(image.astype(np.float32))
        low, high = float(image.min()), float(image.max())
        if low < 0 or high > 255 or high <= 1:  # not 8 bits as floating point
            image = (image - low) * (255 / max(high - low, 1e-12))
        image = image.round().astype(np.uint8)
    return np.ascontiguousarray(image)


def find_fault(info: dict, decode: bool, load: Loader | None = None) -> str | None:
    """Returns what is wrong with the image or label map of a sample, in one line, or None.

    Decoders fill the missing part of a truncated JPEG with grey without an error, so the end of the file is checked.

    Args:
        info: ``img_path`` and ``seg_map_path``, if there is one.
        decode: Whether to decode files whose end is as it should be, too. Only then is a missing file a fault: it may
            be the name of something outside of the file system, which a pipeline knows to load.
        load: The transform that loads the image, see :func:`read_image`; label maps are decoded by Pillow.
    """
    for name in ('img_path', 'seg_map_path'):
        path = info.get(name)
        if not isinstance(path, str) or '://' in path:
            continue
        read = functools.partial(read_image, load=load) if name == 'img_path' else _decode
        fault = _fault_of(read, path) if decode else _find_truncation(path)
        if fault:
            return fault
    return None


def _fault_of(read: Callable[[str], object], path: str) -> str | None:
    try:
        read(path)
    except InputError as error:
        return str(error)
    except Exception as error:  # decoders raise anything
        return _describe(path, error)
    return None


def _decode(path: str) -> None:
    with Image.open(path) as image:
        image.load()


def _find_truncation(path: str) -> str | None:
    """Returns what is wrong with a local file that does not end as its format should, if Pillow cannot decode it."""
    try:
        complete = '://' in path or _is_complete(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return _describe(path, error)
    return None if complete else _fault_of(_decode, path)


def _describe(path: str, error: Exception, load: Loader | None = None) -> str:
    """Returns why an image cannot be read, in one line; ``load`` is what could not read it."""
    if isinstance(error, FileNotFoundError):
        return f'{path} does not exist'
    if isinstance(error, OSError) and error.errno:
        return f'{path} cannot be read ({error.strerror})'
    # MMCV's assertion and OpenCV's error say no more than that the file cannot be decoded.
    reason = '' if isinstance(error, (AssertionError, cv2.error)) else f'{type(error).__name__}: {error}'
    if load is not None and (other := _fault_of(_decode, path)):
        return other
    if load is not None:
        name = getattr(load, 'imdecode_backend', type(load).__name__)
        reader = {'cv2': 'OpenCV', 'pillow': 'Pillow'}.get(name, name)
        why = f' ({" ".join(reason.split())})' if reason else ''
        return f'{path} is an image that {reader}, with which the data is read, cannot read{why}: save it as a PNG'
    reason = ' '.join(str(error).replace(f"'{path}'", '').split()) or type(error).__name__
    return f'{path} is truncated or not an image ({reason})'


@contextlib.contextmanager
def _silent_opencv() -> Iterator[None]:
    """Keeps OpenCV from writing on stderr why it cannot decode a file."""
    level = cv2.setLogLevel(0)
    try:
        yield
    finally:
        cv2.setLogLevel(level)


def _is_complete(path: str) -> bool:
    """Returns whether a JPEG or PNG file ends as it should; True for other formats."""
    end = _ENDS.get(os.path.splitext(path)[1].lower())
    if end is None:
        return True
    with open(path, 'rb') as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 64))
        return file.read().rstrip(b'\0\r\n ').endswith(end)


def unreadable_error(fault: str) -> InputError:
    """Returns the error that ends a run because of a fault of :func:`find_fault`."""
    return InputError(f'an image cannot be read: {fault}; restore it, or remove it from the data')


@contextlib.contextmanager
def report_unreadable_images() -> Iterator[None]:
    """Turns the error of MMCV's ``LoadImageFromFile``, here or in a worker process, into an InputError of one line."""
    try:
        yield
    except (AssertionError, FileNotFoundError) as error:
        # MMCV says which file in the text alone. In a worker's, its traceback comes first: the last match counts.
        found = re.findall(r"failed to load image: (.+)|No such file or directory: '(.+)'", str(error))
        if not found:
            raise
        damaged, absent = found[-1]
        if absent and not absent.lower().endswith(EXTENSIONS):
            raise
        fault = f'{absent} does not exist' if absent else f'{damaged} is truncated or not an image'
        found = find_fault(dict(img_path=damaged), decode=True) if os.path.exists(damaged) else None
        raise unreadable_error(found or fault) from error
