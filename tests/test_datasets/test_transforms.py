"""The crop's distribution and pixels, and the inputs that reach the model."""

import math

import numpy as np
import pytest
import torch
from mmcv.transforms.utils import cache_random_params
from PIL import Image

from pvt_mm.datasets import PackInputs, RandomResizedCrop
from pvt_mm.utils.errors import InputError


@pytest.fixture(autouse=True)
def _seed():
    np.random.seed(0)


def noise(H: int, W: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)


def test_boxes_lie_in_the_image_with_an_area_and_a_ratio_from_the_ranges():
    H, W = 300, 500
    crop = RandomResizedCrop(224)
    boxes = [crop.draw_box(H, W) for _ in range(400)]
    areas, ratios = [], []
    for x, y, w, h in boxes:
        assert 0 <= x <= W - w
        assert 0 <= y <= H - h
        # the sides are rounded, by half a pixel at most
        assert (w + 0.5) * (h + 0.5) >= 0.08 * H * W
        assert (w - 0.5) / (h + 0.5) <= 4 / 3
        assert (w + 0.5) / (h - 0.5) >= 3 / 4
        areas.append(w * h / (H * W))
        ratios.append(w / h)
    assert min(areas) < 0.12
    assert max(areas) > 0.65
    assert min(ratios) < 0.8
    assert max(ratios) > 1.25
    assert np.mean([x / (W - w) for x, _, w, _ in boxes]) == pytest.approx(0.5, abs=0.06)


def test_areas_and_logarithms_of_ratios_are_uniform_where_every_box_fits():
    crop = RandomResizedCrop(224, crop_ratio_range=(0.1, 0.3), aspect_ratio_range=(1 / 3, 3))
    boxes = np.array([crop.draw_box(1000, 1000) for _ in range(2000)])
    areas = boxes[:, 2] * boxes[:, 3] / 1e6
    assert np.quantile(areas, [0.25, 0.5, 0.75]) == pytest.approx([0.15, 0.2, 0.25], abs=0.01)
    logs = np.log(boxes[:, 2] / boxes[:, 3])
    assert np.quantile(logs, [0.25, 0.5, 0.75]) == pytest.approx(np.array([-0.5, 0, 0.5]) * math.log(3), abs=0.08)


@pytest.mark.parametrize(('scale', 'size'), [(32, (32, 32)), ((40, 24), (40, 24)), ([24, 40], (24, 40))])
def test_the_pixels_are_pillows(scale, size):
    crop, image = RandomResizedCrop(scale), noise(90, 70)
    for seed in range(5):
        np.random.seed(seed)
        x, y, w, h = crop.draw_box(90, 70)
        np.random.seed(seed)
        results = crop(dict(img=image, gt_label=3))
        expected = Image.fromarray(image).crop((x, y, x + w, y + h)).resize(size, Image.Resampling.BICUBIC)
        assert np.array_equal(results['img'], np.array(expected))
        assert results['img_shape'] == size[::-1]
        assert results['gt_label'] == 3


@pytest.mark.parametrize(
    ('shape', 'box'),
    [
        ((30, 100), (30, 0, 40, 30)),  # too wide: 4:3
        ((100, 30), (0, 30, 30, 40)),  # too high: 3:4
        ((30, 36), (0, 0, 36, 30)),
        ((1, 1), (0, 0, 1, 1)),
    ],
)
def test_a_central_box_is_taken_where_none_fits(shape, box):
    assert RandomResizedCrop(8, max_attempts=0).draw_box(*shape) == box
    assert RandomResizedCrop(8, crop_ratio_range=(4, 5)).draw_box(*shape) == box


def test_the_box_can_be_cached_for_several_images():
    crop = RandomResizedCrop(8)
    first, second = crop(dict(img=noise(50, 60)))['img'], crop(dict(img=noise(50, 60)))['img']
    assert not np.array_equal(first, second)
    with cache_random_params(crop):
        first, second = crop(dict(img=noise(50, 60)))['img'], crop(dict(img=noise(50, 60)))['img']
    assert np.array_equal(first, second)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(interpolation='bicubik'), "'pillow' has no interpolation 'bicubik'"),
        (dict(interpolation='hamming', backend='cv2'), "'cv2' has no interpolation 'hamming'"),
        (dict(backend='turbo'), "'turbo' has no"),
        (dict(crop_ratio_range=(1.0, 0.08)), r'crop_ratio_range is \(1.0, 0.08\)'),
        (dict(aspect_ratio_range=(0, 1)), r'aspect_ratio_range is \(0, 1\)'),
    ],
)
def test_invalid_arguments(options, message):
    with pytest.raises(InputError, match=message):
        RandomResizedCrop(224, **options)


@pytest.mark.parametrize('image', [noise(4, 6), noise(4, 6)[:, ::-1], noise(4, 6)[..., 0]])
def test_inputs_and_data_sample(image):
    results = dict(img=image, gt_label=2, img_path='a.jpg', ori_shape=(8, 9), img_shape=(4, 6), flip=True)
    packed = PackInputs()(results)
    inputs, sample = packed['inputs'], packed['data_samples']
    assert inputs.dtype == torch.uint8
    assert inputs.is_contiguous()
    assert inputs.shape == (1 if image.ndim == 2 else 3, 4, 6)
    for c, channel in enumerate(inputs):
        assert np.array_equal(channel.numpy(), image if image.ndim == 2 else image[..., c])
    assert sample.gt_label.tolist() == [2]
    assert sample.gt_label.dtype == torch.int64
    assert sample.metainfo == dict(img_path='a.jpg', ori_shape=(8, 9), img_shape=(4, 6))


def test_an_image_without_a_label():
    sample = PackInputs(meta_keys=('img_path', 'flip'))(dict(img=noise(4, 6), img_path='a.jpg'))['data_samples']
    assert 'gt_label' not in sample
    assert sample.metainfo == dict(img_path='a.jpg')
