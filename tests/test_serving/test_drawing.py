"""Drawing with Pillow and NumPy alone. That of each task is in tests/test_tools/test_demo.py."""

import cv2
import numpy as np
import pytest
from PIL import ImageFont

from pvt_mm.serving import drawing
from pvt_mm.serving.drawing import draw, innermost
from pvt_mm.serving.run_lengths import encode


@pytest.mark.parametrize('shape', [(40, 30), (300, 700), (1, 50)])
def test_the_innermost_point_is_far_from_the_outline(shape):
    rng = np.random.default_rng(0)
    for smooth in (1, 5, 31, 61):
        mask = cv2.blur(rng.random(shape), (smooth, smooth)) > 0.51
        distance = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
        x, y = innermost(mask)
        assert mask[y, x]
        assert distance[y, x] >= 0.7 * distance.max() - max(shape) / 128  # a cell
    x, y = innermost(np.ones((101, 201), bool))
    assert 40 < x < 160
    assert 45 < y < 55


def test_colours_and_sizes():
    image = np.full((120, 160, 3), (10, 20, 30), np.uint8)
    objects = [dict(label='a', score=0.9, bbox=[40.0, 30.0, 100.0, 80.0])]
    drawn = draw(image, objects, {'a': (200, 100, 50)})
    assert drawn.shape == (480, 640, 3)
    assert drawn[200, 160].tolist() == drawn[320, 300].tolist() == [200, 100, 50]  # 4 times 40, 30 to 100, 80
    assert drawn[300, 300].tolist() == drawn[5, 5].tolist() == [10, 20, 30]
    assert (image == (10, 20, 30)).all()


def test_masks_that_overlap_leave_half_of_the_image():
    image, masks = np.full((480, 640, 3), 100, np.uint8), np.zeros((2, 480, 640), bool)
    masks[0, :240, :100], masks[1, :240] = True, True
    objects = [dict(label=name, share=0.5, mask=encode(mask)) for name, mask in zip('ab', masks, strict=True)]
    drawn = draw(image, objects, {'a': (200, 0, 0), 'b': (0, 0, 200)})
    assert drawn[5, 5].tolist() == [150, 50, 50]  # the best on top, once
    assert drawn[5, 635].tolist() == [50, 50, 150]
    assert drawn[475, 5].tolist() == [100, 100, 100]


def test_text_without_a_font_of_the_system(monkeypatch):
    truetype, asked = ImageFont.truetype, []

    def refuse(font, *arguments, **options):
        if isinstance(font, str):
            asked.append(font)
            raise OSError
        return truetype(font, *arguments, **options)

    monkeypatch.setattr(ImageFont, 'truetype', refuse)
    drawing._font.cache_clear()
    assert (draw(np.zeros((480, 640, 3), np.uint8), [dict(label='circle', score=0.5)], {}) == 255).any()
    drawing._font.cache_clear()
    assert asked[0] == 'DejaVuSans.ttf'
