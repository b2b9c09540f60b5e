"""Reading images outside of MMCV's pipelines, and what to do with those that are missing, truncated or not images.

They are an :class:`InputError` that names them. Only training may skip some (:mod:`pvt_mm.engine.loading`).
"""

import contextlib
import os
import re
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps

from pvt_mm.utils.errors import InputError

# Suffixes of the files that are taken for images, in lower case.
EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.ppm', '.pgm')
# The last bytes of an image file, after which only padding may come.
_ENDS = {'.jpg': b'\xff\xd9', '.jpeg': b'\xff\xd9', '.png': b'IEND\xaeB`\x82'}


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Returns an image as OpenCV reads it, (H, W, 3) uint8 in BGR, turned upright by its EXIF orientation.

    Raises:
        InputError: The file is missing, truncated or not an image.
    """
    try:
        with Image.open(path) as image:
            return np.ascontiguousarray(np.asarray(ImageOps.exif_transpose(image).convert('RGB'))[..., ::-1])
    except Exception as error:  # decoders raise anything, such as struct.error for damaged EXIF data
        raise InputError(_describe(path, error)) from None


def find_fault(info: dict, decode: bool) -> str | None:
    """Returns what is wrong with the image or label map of a sample, in one line, or None.

    Decoders fill the missing part of a truncated JPEG with grey without an error, so the end of the file is checked.

    Args:
        info: ``img_path`` and ``seg_map_path``, if there is one.
        decode: Whether to decode files whose end is as it should be, too. Only then is a missing file a fault: it may
            be the name of something outside of the file system, which a pipeline knows to load.
    """
    for name in ('img_path', 'seg_map_path'):
        path = info.get(name)
        if not isinstance(path, str) or '://' in path:
            continue
        try:
            if decode or not _is_complete(path):
                with Image.open(path) as image:
                    image.load()
        except Exception as error:  # decoders raise anything
            if decode or not isinstance(error, FileNotFoundError):
                return _describe(path, error)
    return None


def _describe(path: str | os.PathLike, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f'{path} does not exist'
    reason = ' '.join(str(error).replace(f"'{path}'", '').split()) or type(error).__name__
    return f'{path} is truncated or not an image ({reason})'


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
        raise unreadable_error(fault) from error
