"""Reading images, and files that are missing, truncated or not images."""

import numpy as np
import pytest
from PIL import Image

from pvt_mm.datasets.image_io import find_fault, read_image, report_unreadable_images
from pvt_mm.utils.errors import InputError


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)  # RGB


@pytest.fixture(params=['missing', 'empty', 'text', 'truncated'])
def damaged(request, pixels, tmp_path):
    path = tmp_path / 'a.jpg'
    Image.fromarray(pixels).save(path)
    content = path.read_bytes()
    path.unlink()
    if request.param != 'missing':
        path.write_bytes({'empty': b'', 'text': b'not an image', 'truncated': content[:-200]}[request.param])
    return path


def test_images_are_read_upright_as_bgr(pixels, tmp_path):
    rotated = Image.Exif()
    rotated[0x0112] = 6  # the camera was held on its side
    Image.fromarray(pixels).save(tmp_path / 'a.png', exif=rotated)
    np.testing.assert_array_equal(read_image(tmp_path / 'a.png'), np.rot90(pixels, -1)[..., ::-1])
    Image.fromarray(pixels).convert('L').save(tmp_path / 'grey.png')
    assert read_image(tmp_path / 'grey.png').shape == (20, 30, 3)


def test_damaged_files_are_named(damaged):
    what = 'is truncated or not an image' if damaged.exists() else 'does not exist'
    with pytest.raises(InputError, match=rf'^{damaged} {what}'):
        read_image(damaged)
    for name in ('img_path', 'seg_map_path'):
        fault = find_fault({name: str(damaged)}, decode=True)
        assert fault.startswith(f'{damaged} {what}')
        assert '\n' not in fault
        # what does not exist may be outside of the file system
        assert find_fault({name: str(damaged)}, decode=False) == (fault if damaged.exists() else None)


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'webp'])
def test_intact_files_have_no_fault(suffix, pixels, tmp_path):
    path = tmp_path / f'a.{suffix}'
    Image.fromarray(pixels).save(path)
    with open(path, 'ab') as file:
        file.write(bytes(20))  # some writers pad
    for decode in (False, True):
        assert find_fault({'img_path': str(path), 'seg_map_path': None}, decode) is None
        assert find_fault({'img_path': 's3://bucket/a.jpg'}, decode) is None
    # an undecodable file whose end is as it should be is found by decoding only
    path.write_bytes(b'not an image' + path.read_bytes()[-40:])
    assert find_fault({'img_path': str(path)}, decode=False) is None
    assert 'truncated or not an image' in find_fault({'img_path': str(path)}, decode=True)


@pytest.mark.parametrize(
    ('error', 'fault'),
    [
        (AssertionError('failed to load image: a.jpg'), 'a.jpg is truncated or not an image'),
        (FileNotFoundError(2, 'No such file or directory', 'a.jpg'), 'a.jpg does not exist'),
        (
            AssertionError("Traceback\n  f'failed to load image: {name}'\nAssertionError: failed to load image: a.jpg"),
            'a.jpg is truncated or not an image',
        ),
    ],
)
def test_mmcvs_errors_are_one_line(error, fault):
    with pytest.raises(InputError, match=f'^an image cannot be read: {fault}; restore it'), report_unreadable_images():
        raise error
    with pytest.raises(AssertionError, match='a bug'), report_unreadable_images():
        raise AssertionError('a bug')
