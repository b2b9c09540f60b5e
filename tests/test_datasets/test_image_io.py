"""Reading images of any format as training does, and files that are missing, truncated or not images."""

import io
import os

import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from mmengine.registry import DefaultScope
from PIL import Image, features

from pvt_mm.datasets.image_folder import ImageFolder
from pvt_mm.datasets.image_io import build_loader, find_fault, loader_of, read_image, report_unreadable_images, to_bgr
from pvt_mm.utils.errors import InputError


def by_pillow(pixels: np.ndarray, kind: str, mode: str = 'RGB', **options) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image if mode == 'RGB' else image.convert(mode)).save(buffer, kind, **options)
    return buffer.getvalue()


def by_opencv(pixels: np.ndarray, suffix: str) -> bytes:
    return cv2.imencode(suffix, pixels)[1].tobytes()


def make_formats(pixels: np.ndarray) -> dict[str, bytes]:
    """Returns files of many formats by name, of (H, W, 3) uint8 pixels."""
    grey, turned = pixels[..., 1], Image.Exif()
    turned[0x0112] = 6  # the camera was held on its side
    alpha = np.dstack([pixels, np.tile(np.linspace(0, 255, pixels.shape[1]).astype(np.uint8), (len(pixels), 1))])
    frames = dict(save_all=True, append_images=[Image.fromarray(pixels[::-1].copy())])
    found = {
        'plain.jpg': by_pillow(pixels, 'JPEG'),
        'plain.png': by_pillow(pixels, 'PNG'),
        'cmyk.jpg': by_pillow(pixels, 'JPEG', 'CMYK'),
        'turned.jpg': by_pillow(pixels, 'JPEG', exif=turned),
        'turned.webp': by_pillow(pixels, 'WEBP', exif=turned),
        'profile.jpg': by_pillow(pixels, 'JPEG', icc_profile=b'not a profile'),
        'grey16.png': by_opencv(grey.astype(np.uint16) * 257, '.png'),
        'dark16.png': by_opencv(grey.astype(np.uint16), '.png'),
        'color16.png': by_opencv(pixels.astype(np.uint16) * 257, '.png'),
        'grey16.tif': by_pillow(grey.astype(np.uint16) * 257, 'TIFF'),
        'float.tif': by_pillow(grey.astype(np.float32) / 255, 'TIFF'),  # OpenCV cannot read it as colours
        'float_color.tif': by_opencv(pixels.astype(np.float32) / 255, '.tif'),  # Pillow cannot read it
        'int32.tif': by_pillow(grey.astype(np.int32) * 1000, 'TIFF'),
        'palette.png': by_pillow(pixels, 'PNG', 'P'),
        'transparent_palette.png': by_pillow(pixels, 'PNG', 'P', transparency=3),
        'alpha.png': by_pillow(alpha, 'PNG'),
        'alpha.tif': by_pillow(alpha, 'TIFF'),
        'grey_alpha.png': by_pillow(alpha, 'PNG', 'LA'),
        'bits.png': by_pillow(grey, 'PNG', '1'),
        'animated.gif': by_pillow(pixels, 'GIF', **frames),
        'animated.webp': by_pillow(pixels, 'WEBP', **frames),
        'stereo_mpo.jpg': by_pillow(pixels, 'MPO', **frames),
        'webp_inside.jpg': by_pillow(pixels, 'WEBP'),
        'png_inside.jpg': by_pillow(pixels, 'PNG'),
        'targa_inside.png': by_pillow(pixels, 'TGA'),  # OpenCV cannot read it
        'text.png': b'not an image',
        'empty.jpg': b'',
        'cut.jpg': by_pillow(pixels, 'JPEG')[:-100],
    }
    if features.check('jpg_2000'):
        found['wavelets.jp2'] = by_pillow(pixels, 'JPEG2000')
    if features.check('avif'):
        found['turned.avif'] = by_pillow(pixels, 'AVIF', exif=turned)
    return found


@pytest.fixture
def formats(pixels, tmp_path) -> dict[str, str]:
    """Paths of files of many formats by name: the images of a class of an ImageFolder."""
    folder = tmp_path / 'train' / 'a'
    folder.mkdir(parents=True)
    for name, content in make_formats(pixels).items():
        (folder / name).write_bytes(content)
    return {path.name: str(path) for path in folder.iterdir()}


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


LOADERS = [{}, dict(imdecode_backend='pillow'), dict(color_type='unchanged'), dict(to_float32=True)]


def attempt(read, *arguments) -> np.ndarray | str:
    """Returns what ``read`` returns, or the text of its InputError."""
    try:
        return read(*arguments)
    except InputError as error:
        return str(error)


@pytest.mark.parametrize('options', LOADERS, ids=str)
def test_every_format_is_read_or_refused_as_in_training(options, formats, tmp_path, capfd):
    step = dict(type='LoadImageFromFile', **options)
    with DefaultScope.overwrite_default_scope('mmengine'):
        dataset = ImageFolder(data_root=str(tmp_path), data_prefix='train', pipeline=[step], max_refetch=1)
        load = build_loader([step])
    assert vars(load) == vars(loader_of(dataset)) == vars(LoadImageFromFile(**options))
    paths = [dataset.get_data_info(i)['img_path'] for i in range(len(dataset))]
    assert sorted(paths) == sorted(formats.values())
    found = [attempt(read_image, path, load) for path in paths]
    assert capfd.readouterr().err == ''  # OpenCV's own lines
    refused = {path: why for path, why in zip(paths, found, strict=True) if isinstance(why, str)}
    assert {'text.png', 'empty.jpg', 'cut.jpg'} <= {os.path.basename(path) for path in refused}
    for i, (path, image) in enumerate(zip(paths, found, strict=True)):
        assert find_fault(dict(img_path=path), decode=True, load=load) == refused.get(path)
        if path in refused:
            assert image.startswith(path)
            assert '\n' not in image
            if not path.endswith('cut.jpg'):  # OpenCV may fill it
                assert attempt(dataset.__getitem__, i).startswith('an image cannot be read: ' + image)
        else:
            expected, drawn = dataset[i]['img'], to_bgr(image)
            assert image.dtype == expected.dtype
            np.testing.assert_array_equal(image, expected)
            assert drawn.shape == (*image.shape[:2], 3)
            assert drawn.dtype == np.uint8
            if image.dtype == np.uint8 and image.ndim == 3:
                np.testing.assert_array_equal(drawn, image[..., :3])


@pytest.mark.parametrize(('low', 'high'), [(0.0, 1.0), (0.2, 0.7), (-1.0, 1.0), (0.0, 65535.0)])
def test_images_of_other_ranges_are_drawn_from_black_to_white(low, high):
    image = np.linspace(low, high, 300, dtype=np.float32).reshape(10, 10, 3)
    drawn = to_bgr(image)
    assert (drawn.min(), drawn.max()) == (0, 255)
    np.testing.assert_allclose(drawn.ravel(), np.linspace(0, 255, 300), atol=0.51)


def test_what_only_another_reader_reads_says_so(formats):
    for name in ('float.tif', 'int32.tif', 'targa_inside.png'):
        with pytest.raises(InputError, match=f'{name} is an image that OpenCV, with which the data is read, cannot re'):
            read_image(formats[name])
    loaders = [LoadImageFromFile(imdecode_backend=backend) for backend in ('cv2', 'pillow')]
    divided, clipped = (read_image(formats['grey16.png'], load).astype(int) for load in loaders)
    assert np.abs(divided - clipped).mean() > 50
    path = formats['float.tif']
    with pytest.raises(InputError, match='an image that OpenCV'), report_unreadable_images():  # testing has no more
        LoadImageFromFile()(dict(img_path=path))
    with pytest.raises(InputError, match=r'float_color\.tif is truncated or not an image'):
        read_image(formats['float_color.tif'], LoadImageFromFile(imdecode_backend='pillow'))


@pytest.mark.skipif(os.geteuid() == 0, reason='root reads any file')
def test_a_file_that_may_not_be_read(formats):
    os.chmod(formats['plain.png'], 0)
    with pytest.raises(InputError, match=r'plain\.png cannot be read \(Permission denied\)'):
        read_image(formats['plain.png'])


def test_folders_are_not_images(tmp_path):
    with pytest.raises(InputError, match=rf'^{tmp_path} cannot be read \(Is a directory\)'):
        read_image(tmp_path)


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
