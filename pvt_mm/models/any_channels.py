"""Normalisation of images with any number of channels, such as RGB and infrared, on the device."""

from collections.abc import Sequence

import torch
from mmengine.model import BaseDataPreprocessor
from torch import Tensor

from pvt_mm.utils.errors import InputError


class AnyChannels(BaseDataPreprocessor):
    """Normalises images of any number of channels, and leaves the rest to the preprocessor that follows it as a base.

    MMEngine's and those of MMDetection and MMSegmentation take 1 or 3. With 3 the result is the same to the bit.

    Args:
        mean, std: One value for each channel of the images, or one for all: with ``bgr_to_rgb`` those of R, G and B,
            then of the other channels. None: the images are not normalised.
        bgr_to_rgb, rgb_to_bgr: Whether to reverse the first three channels; the others stay.
        kwargs: Arguments of the other base.

    Raises:
        ValueError: ``mean`` and ``std`` do not have the same number of values, or both orders are reversed.
        InputError: From ``forward``: an image has another number of channels.
    """

    def __init__(
        self,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        bgr_to_rgb: bool = False,
        rgb_to_bgr: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if len(mean or ()) != len(std or ()):
            raise ValueError(f'mean and std must have as many values as the images have channels, got {mean} and {std}')
        if bgr_to_rgb and rgb_to_bgr:
            raise ValueError('bgr_to_rgb and rgb_to_bgr exclude each other')
        self.reverses = bgr_to_rgb or rgb_to_bgr
        for name, values in dict(mean=mean, std=std).items():
            values = torch.tensor(values, dtype=torch.get_default_dtype()).view(-1, 1, 1) if values else None
            self.register_buffer(name, values, persistent=False)

    def forward(self, data: dict, training: bool = False) -> dict:
        data = self.cast_data(data)
        images, samples = data['inputs'], data.get('data_samples') or ()
        if isinstance(images, Tensor):
            images = self.normalize(images, samples)
        else:
            samples = samples or [None] * len(images)
            images = [self.normalize(image, [sample]) for image, sample in zip(images, samples, strict=True)]
        return super().forward({**data, 'inputs': images}, training)

    def normalize(self, images: Tensor, samples: Sequence = ()) -> Tensor:
        """Returns images (..., C, H, W) in floating point, with the channels in order, normalised.

        Raises:
            InputError: They do not have as many channels as ``mean``; it names the file of the first of ``samples``.
        """
        images = self.in_order(images).float()
        if self.mean is None:
            return images
        if len(self.mean) not in (1, images.shape[-3]):
            path = next((sample.get('img_path') for sample in samples if sample is not None), None) or 'an image'
            raise InputError(
                f'{path} has {images.shape[-3]} channels, and model.data_preprocessor.mean {len(self.mean)} values: '
                'all images must have as many channels'
            )
        return (images - self.mean) / self.std

    def in_order(self, images: Tensor) -> Tensor:
        """Returns images (..., C, H, W) with the first three channels reversed, if the class is to do so."""
        channels = images.shape[-3]
        if not self.reverses or channels < 3:
            return images
        return images[..., [2, 1, 0, *range(3, channels)], :, :]
