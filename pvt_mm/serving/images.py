"""Reading image files with Pillow, with the pixels that OpenCV reads in training."""

import contextlib
import os
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from pvt_mm.utils.errors import InputError

# Suffixes of the files that are taken for images, in lower case.
EXTENSIONS = ('.jpg', '.jpeg', '.jfif', '.png', '.bmp', '.webp', '.tif', '.tiff', '.ppm', '.pgm', '.gif')
EXTENSIONS += ('.jp2', '.avif')
# Their formats, whatever the suffix says. Pillow reads others, some with programs of the machine.
FORMATS = ('JPEG', 'PNG', 'BMP', 'WEBP', 'TIFF', 'PPM', 'GIF', 'JPEG2000', 'AVIF')
UPRIGHT = ('JPEG', 'MPO', 'PNG')  # those that OpenCV turns as their EXIF data say; Pillow itself turns a TIFF
MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}  # by the number of channels
_TURNS = {  # by EXIF's orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXTRA_SAMPLES, _UNASSOCIATED_ALPHA = 338, 2  # a tag of a TIFF, and its value for colours not multiplied by alpha

Image.init()  # fills Image.OPEN


def read_image(file: str | os.PathLike | BinaryIO, channels: int = 3) -> np.ndarray:
    """Returns the pixels of an image file, (H, W, channels) uint8, as OpenCV reads them in training, but in RGB order.

    Of 16 bits the upper 8 are kept, alpha is dropped unless four channels are wanted, an animation is its first image.

    Raises:
        InputError: The file is missing, truncated, not an image, of floating point, larger than Pillow's limit (twice
            ``PIL.Image.MAX_IMAGE_PIXELS``), or has no fourth channel if four are wanted.
    """
    name = os.fspath(file) if isinstance(file, (str, os.PathLike)) else 'the image'
    formats = [one for one in FORMATS if one in Image.OPEN]  # AVIF is optional
    try:
        with Image.open(file, formats=formats) as image:
            image.load()
            return _pixels(image, channels, name)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f'{name} does not exist') from None
    except Image.DecompressionBombError:
        raise InputError(f'{name} has more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels: reduce it') from None
    except Exception as error:  # decoders raise anything
        if isinstance(error, OSError) and error.errno:
            raise InputError(f'{name} cannot be read ({error.strerror})') from None
        reason = 'cannot identify image file' if isinstance(error, UnidentifiedImageError) else str(error)
        reason = ' '.join(reason.split()) or type(error).__name__
        raise InputError(f'{name} is truncated or not an image ({reason})') from None


def check_array(image: np.ndarray, channels: int) -> np.ndarray:
    """Returns an array if it is an image of a number of channels, (H, W, channels) uint8, else raises an InputError."""
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != channels or not image.size:
        order = {3: ' in RGB order'}.get(channels, '')
        raise InputError(
            f'an image must be (H, W, {channels}) uint8{order}, got {image.shape} {image.dtype}: convert it'
        )
    return image


def _pixels(image: Image.Image, channels: int, name: str) -> np.ndarray:
    """Returns the pixels of a loaded image, see :func:`read_image`."""
    if channels not in MODES:
        raise InputError(f'{name}: files have 1, 3 or 4 channels, and the model takes {channels}: give it an array')
    if channels == 4 and not image.has_transparency_data:
        raise InputError(f'{name} has {len(image.getbands())} channels, and the model takes 4')
    if channels != 4:
        image.info.pop('transparency', None)
        image = _upright(image) if image.format in UPRIGHT else image
    if image.mode.startswith('I;16') or (image.mode == 'I' and image.format == 'PPM'):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ('F', 'I'):
        raise InputError(f'{name} is an image of more than 16 bits: save it as a PNG')
    pixels = np.asarray(image)
    if image.mode == 'CMYK' and channels == 3:  # OpenCV's rounding
        key = 255 - pixels[..., 3:].astype(int)
        return (key - (pixels[..., :3] * key >> 8)).astype(np.uint8)
    if image.mode == 'RGBA' and _UNASSOCIATED_ALPHA in getattr(image, 'tag_v2', {}).get(_EXTRA_SAMPLES, ()):
        colors = (pixels[..., :3] * pixels[..., 3:].astype(int) + 127) // 255  # as OpenCV's TIFF reader
        return np.dstack([colors.astype(np.uint8), pixels[..., 3]])[..., :channels]
    return np.atleast_3d(np.asarray(image.convert(MODES[channels])))


def _upright(image: Image.Image) -> Image.Image:
    exif = Image.Exif()
    with contextlib.suppress(Exception):  # damaged EXIF data are ignored
        exif.load(image.info.get('exif'))
    how = _TURNS.get(exif.get(ExifTags.Base.Orientation))
    return image if how is None else image.transpose(how)
