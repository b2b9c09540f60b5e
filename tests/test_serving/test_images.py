"""Reading images with Pillow as training reads them with OpenCV."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from pvt_mm.datasets import image_io
from pvt_mm.serving.images import read_image
from pvt_mm.utils.errors import InputError
from tests.test_datasets.test_image_io import attempt, make_formats

# What only one of the two reads.
EXCEPTIONS = ('float_color.tif',)


@pytest.fixture(scope='module')
def files(tmp_path_factory) -> dict[str, Path]:
    """Paths of files of many formats, of noise and turned in all ways, by name."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    content = make_formats(pixels)
    for kind in ('JPEG', 'PNG', 'TIFF', 'WEBP'):
        for turn in range(2, 9):
            exif, buffer = Image.Exif(), io.BytesIO()
            exif[0x0112] = turn
            options = dict(tiffinfo={0x0112: turn}) if kind == 'TIFF' else dict(exif=exif)
            Image.fromarray(pixels).save(buffer, kind, **options)
            content[f'turned{turn}.{kind.lower()}'] = buffer.getvalue()
    content['wide16.pgm'] = cv2.imencode('.pgm', pixels[..., 0].astype(np.uint16) * 257)[1].tobytes()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, 'JPEG', exif=b'Exif\0\0damaged')
    content['damaged_exif.jpg'] = buffer.getvalue()
    folder = tmp_path_factory.mktemp('files')
    for name, value in content.items():
        (folder / name).write_bytes(value)
    return {name: folder / name for name in (*content, 'gone.jpg')}


def test_every_format_is_read_or_refused_as_in_training(files):
    read = 0
    for name, path in files.items():
        expected, found = attempt(image_io.read_image, path), attempt(read_image, path)
        if isinstance(expected, str):
            assert isinstance(found, str), name
            assert found.startswith(f'{path} ')
        elif name not in EXCEPTIONS:
            assert not isinstance(found, str), found
            assert found.dtype == np.uint8
            np.testing.assert_array_equal(found[..., ::-1], expected, name)
            read += 1
    assert read > 40


@pytest.mark.parametrize('name', ['text.png', 'empty.jpg', 'cut.jpg', 'gone.jpg'])
def test_damaged_files_are_refused_with_the_words_of_training(name, files):
    expected = attempt(image_io.read_image, files[name])
    assert isinstance(expected, str)
    assert attempt(read_image, files[name]) == expected


def test_four_channels_are_read_as_they_are(files, tmp_path):
    load = LoadImageFromFile(color_type='unchanged')
    rng = np.random.default_rng(1)
    cv2.imwrite(str(tmp_path / 'four.tif'), rng.integers(0, 256, (20, 30, 4), np.uint8))
    names = ('alpha.png', 'alpha.tif', 'grey_alpha.png', 'transparent_palette.png')
    for path in (tmp_path / 'four.tif', *(files[name] for name in names)):
        expected = image_io.read_image(path, load)
        np.testing.assert_array_equal(read_image(path, 4)[..., [2, 1, 0, 3]], expected, path.name)
    for name, count in (('plain.jpg', 3), ('bits.png', 1)):
        with pytest.raises(InputError, match=rf'{name} has {count} channels, and the model takes 4'):
            read_image(files[name], 4)
    grey = cv2.imread(str(files['grey16.png']), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_array_equal(read_image(files['grey16.png'], 1), grey[..., None])


def test_large_images_are_refused_before_they_are_decoded(files, monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 299)
    with pytest.raises(InputError, match=r'plain\.png has more than 598 pixels: reduce it'):
        read_image(files['plain.png'])


def test_files_in_memory_have_no_name(files):
    content = files['plain.png'].read_bytes()
    np.testing.assert_array_equal(read_image(io.BytesIO(content)), read_image(files['plain.png']))
    with pytest.raises(InputError, match=r'^the image is truncated or not an image \(cannot identify image file\)$'):
        read_image(io.BytesIO(b''))


def test_only_the_formats_of_images_are_opened(tmp_path):
    Image.new('RGB', (9, 9)).save(tmp_path / 'a.eps')  # Pillow would run another program
    with pytest.raises(InputError, match='not an image'):
        read_image(tmp_path / 'a.eps')
