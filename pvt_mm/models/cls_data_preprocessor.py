"""Whole batches of images and labels for a classifier: normalised, and in training augmented, on the device."""

import inspect
from collections.abc import Sequence
from importlib.util import find_spec

import torch
from mmengine.dist import get_rank
from mmengine.model import ImgDataPreprocessor
from torch import Tensor

from pvt_mm.registry import MODELS
from pvt_mm.structures import DataSample


@MODELS.register_module()
class ClsDataPreprocessor(ImgDataPreprocessor):
    """Normalises images, and in training augments them and mixes their labels (section 5.1).

    Each augmentation is left out where its argument is None (or 0). In order: RandAugment, normalisation, random
    erasing, and mixup or CutMix, which leave the shares of the classes in each sample's ``gt_score``.

    Args:
        num_classes: Of the head, which :class:`ImageClassifier` passes on.
        mean, std: Of the channels, in RGB where ``bgr_to_rgb``, from 0 to 255.
        rand_augment: The keyword arguments of :func:`batch_augments.rand_augment`.
        erasing: Probability that a rectangle of an image is replaced by noise.
        mixup, cutmix, switch_prob: See :func:`batch_augments.mix`.
        kwargs: Those of MMEngine's ``ImgDataPreprocessor``: ``bgr_to_rgb``, ``non_blocking``.

    Shape:
        - Input: ``inputs``, images of one size (3, H, W) from 0 to 255, and ``data_samples`` with ``gt_label``.
        - Output: ``inputs`` (B, 3, H, W), and the samples.
    """

    def __init__(
        self,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        rand_augment: dict | None = None,
        erasing: float | None = None,
        mixup: float | None = None,
        cutmix: float | None = None,
        switch_prob: float = 0.5,
        **kwargs,
    ):
        super().__init__(mean, std, **kwargs)
        self.num_classes = num_classes
        self.rand_augment = rand_augment
        self.erasing = erasing or 0.0
        self.mixup, self.cutmix, self.switch_prob = mixup or 0.0, cutmix or 0.0, switch_prob
        rates = dict(erasing=self.erasing, mixup=self.mixup, cutmix=self.cutmix, switch_prob=switch_prob)
        for name, rate in rates.items():
            if not isinstance(rate, (int, float)) or rate < 0 or (name in ('erasing', 'switch_prob') and rate > 1):
                raise ValueError(f'{name} must be None or not negative, and a probability at most 1; got {rate!r}')

        self.augments = bool(rand_augment or any((self.erasing, self.mixup, self.cutmix)))
        if self.augments and not find_spec('kornia'):
            raise ValueError('the augmentations need kornia: `pip install kornia`, or set them all to None')
        if rand_augment:
            from pvt_mm.models import batch_augments

            # a misspelt key is an error
            inspect.signature(batch_augments.rand_augment).bind(None, None, **rand_augment)

    def forward(self, data: dict, training: bool = False) -> dict:
        data = self.cast_data(data)
        images, samples = data['inputs'], data.get('data_samples')
        images = images if isinstance(images, Tensor) else torch.stack(images)
        if self._channel_conversion:
            images = images[:, [2, 1, 0]]
        images = images.float()
        if not training or not self.augments:
            return dict(inputs=(images - self.mean) / self.std, data_samples=samples)
        # Processes have one seed, and would all draw the same: an image's repeats would be augmented alike.
        seed = torch.randint(2**31, ()).item() + get_rank()
        with torch.random.fork_rng([images.device] if images.is_cuda else []):
            torch.manual_seed(seed)
            return dict(inputs=self._augment(images, samples), data_samples=samples)

    def _augment(self, images: Tensor, samples: list[DataSample]) -> Tensor:
        from pvt_mm.models import batch_augments  # kornia takes a second to load, and only training needs it

        if self.rand_augment:
            fill = self.mean.flatten() / 255
            images = batch_augments.rand_augment(images / 255, fill, **self.rand_augment) * 255
        images = (images - self.mean) / self.std
        if self.erasing:
            images = batch_augments.random_erasing(images, self.erasing)
        if self.mixup or self.cutmix:
            labels = torch.cat([sample.gt_label for sample in samples])
            images, shares = batch_augments.mix(
                images, labels, self.num_classes, self.mixup, self.cutmix, self.switch_prob
            )
            for sample, share in zip(samples, shares, strict=True):
                sample.gt_score = share
        return images
