"""Transforms that MMCV lacks: those of a classifier's pipeline, and of images with more than three channels."""

import math
from collections.abc import Sequence

import mmcv
import numpy as np
import torch
from mmcv.image.geometric import cv2_interp_codes, pillow_interp_codes
from mmcv.transforms import BaseTransform, Compose
from mmcv.transforms.utils import cache_randomness

from pvt_mm.registry import TRANSFORMS
from pvt_mm.structures import DataSample
from pvt_mm.utils.errors import InputError


@TRANSFORMS.register_module()
class RandomResizedCrop(BaseTransform):
    """Crops a box of random area, aspect ratio and position and resizes it (Szegedy et al., 2015, arXiv 1409.4842).

    If no box out of ``max_attempts`` fits into the image, the largest centred box of the nearest allowed aspect ratio
    is taken, as torchvision documents. Changes ``img`` and ``img_shape``.

    Args:
        scale: (w, h) of the result, or its side, in pixels.
        crop_ratio_range: Area of the box relative to the image; drawn uniformly.
        aspect_ratio_range: Width of the box over its height; its logarithm is drawn uniformly.
        interpolation: ``'bicubic'``, ``'bilinear'``, ``'nearest'``, ...
        backend: ``'pillow'``, which antialiases when it downsamples, or ``'cv2'``, which does not.

    Raises:
        InputError: A range is not positive and ascending, or the backend does not have the interpolation.
    """

    def __init__(
        self,
        scale: int | Sequence[int],
        crop_ratio_range: tuple[float, float] = (0.08, 1.0),
        aspect_ratio_range: tuple[float, float] = (3 / 4, 4 / 3),
        max_attempts: int = 10,
        interpolation: str = 'bicubic',
        backend: str = 'pillow',
    ):
        if interpolation not in {'pillow': pillow_interp_codes, 'cv2': cv2_interp_codes}.get(backend, ()):
            raise InputError(
                f'RandomResizedCrop: backend {backend!r} has no interpolation {interpolation!r}: set backend to pillow '
                'or cv2, and interpolation to bicubic or bilinear'
            )
        for name, (low, high) in dict(crop_ratio=crop_ratio_range, aspect_ratio=aspect_ratio_range).items():
            if not 0 < low <= high:
                raise InputError(
                    f'RandomResizedCrop: {name}_range is ({low}, {high}): it must be positive and ascending'
                )
        self.scale = (scale, scale) if isinstance(scale, int) else tuple(scale)
        self.crop_ratio_range = crop_ratio_range
        self.aspect_ratio_range = aspect_ratio_range
        self.max_attempts = max_attempts
        self.interpolation = interpolation
        self.backend = backend

    @cache_randomness
    def draw_box(self, H: int, W: int) -> tuple[int, int, int, int]:
        """Returns the left, top, width and height of a box in an image of H x W, in pixels."""
        low, high = self.aspect_ratio_range
        for _ in range(self.max_attempts):
            area = H * W * np.random.uniform(*self.crop_ratio_range)
            ratio = math.exp(np.random.uniform(math.log(low), math.log(high)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= W and 0 < h <= H:
                return np.random.randint(W - w + 1), np.random.randint(H - h + 1), w, h
        ratio = min(max(W / H, low), high)
        w, h = max(1, min(W, round(H * ratio))), max(1, min(H, round(W / ratio)))
        return (W - w) // 2, (H - h) // 2, w, h

    def transform(self, results: dict) -> dict:
        """Crops and resizes ``img``, (H, W) or (H, W, C), to ``scale``."""
        x, y, w, h = self.draw_box(*results['img'].shape[:2])
        img = mmcv.imcrop(results['img'], np.array([x, y, x + w - 1, y + h - 1]))
        results['img'] = mmcv.imresize(img, self.scale, interpolation=self.interpolation, backend=self.backend)
        results['img_shape'] = results['img'].shape[:2]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}({", ".join(f"{name}={value!r}" for name, value in vars(self).items())})'


@TRANSFORMS.register_module()
class OnRGB(BaseTransform):
    """Applies transforms that take 3 channels, such as PhotoMetricDistortion, to the first three of an image with more.

    Args:
        transforms: Configs of transforms, which keep the size of the image.
    """

    def __init__(self, transforms: Sequence[dict]):
        self.transforms = Compose(transforms)

    def transform(self, results: dict) -> dict | None:
        """Changes the first three channels of ``img``, (H, W, C); the others keep their values."""
        others = results['img'][..., 3:]
        results = self.transforms({**results, 'img': np.ascontiguousarray(results['img'][..., :3])})
        if results is not None:
            results['img'] = np.concatenate([results['img'], others.astype(results['img'].dtype)], axis=-1)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(transforms={self.transforms})'


@TRANSFORMS.register_module()
class PackInputs(BaseTransform):
    """Packs the image as ``inputs``, a (C, H, W) tensor, and its label as ``data_samples``; the last transform.

    Args:
        meta_keys: Keys of the results to copy into the metainfo of the DataSample, if present.
    """

    def __init__(self, meta_keys: Sequence[str] = ('img_path', 'ori_shape', 'img_shape')):
        self.meta_keys = meta_keys

    def transform(self, results: dict) -> dict:
        """Returns ``inputs``, of the image's dtype, and ``data_samples``, a :class:`DataSample`."""
        img = np.atleast_3d(results['img'])
        sample = DataSample(metainfo={key: results[key] for key in self.meta_keys if key in results})
        if 'gt_label' in results:
            sample.gt_label = torch.tensor([results['gt_label']])
        return dict(inputs=torch.from_numpy(np.ascontiguousarray(img.transpose(2, 0, 1))), data_samples=sample)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(meta_keys={self.meta_keys})'
