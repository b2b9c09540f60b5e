"""COCO's run lengths without pycocotools."""

import json
import time

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pvt_mm.serving.run_lengths import decode, encode


def corner(shape: tuple[int, int], y: int, x: int) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[y, x] = True
    return mask


def masks() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    found = [rng.random(rng.integers(1, 60, 2)) < rng.choice([0.01, 0.1, 0.5, 0.9]) for _ in range(100)]
    for shape in ((1, 1), (1, 70000), (1000, 1100)):  # runs of up to five groups of bits
        found += [np.zeros(shape, bool), np.ones(shape, bool), corner(shape, 0, 0), corner(shape, -1, -1)]
    return [*found, rng.random((200, 300)) < 0.5]


def test_masks_are_coded_as_pycocotools_codes_them():
    for mask in masks():
        coded = json.loads(json.dumps(encode(mask)))
        expected = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        assert coded == dict(size=[*mask.shape], counts=expected['counts'].decode())
        np.testing.assert_array_equal(decode(coded), mask)
        np.testing.assert_array_equal(decode(expected), mask)


def test_a_large_mask_takes_milliseconds():
    y, x = np.mgrid[:1000, :1500]
    mask, times = (y - 500) ** 2 + (x - 700) ** 2 < 300**2, []
    for _ in range(5):
        start = time.perf_counter()
        decode(encode(mask))
        times.append(time.perf_counter() - start)
    assert min(times) < 0.03


def test_runs_of_another_size_are_refused():
    with pytest.raises(ValueError, match='reshape'):
        decode({**encode(np.ones((3, 4), bool)), 'size': [3, 5]})
