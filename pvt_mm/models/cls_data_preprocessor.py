"""Normalisation and augmentation of a classifier's batches, on the device."""

import inspect
from collections.abc import Sequence

import torch
from mmengine.dist import get_rank
from torch import Tensor

from pvt_mm.models.any_channels import AnyChannels
from pvt_mm.registry import MODELS
from pvt_mm.structures import DataSample
from pvt_mm.utils.errors import import_errors

# NOTE: kornia 0.9 would replace an older torch.
KORNIA = 'pvt_mm[classification]' if torch.__version__ >= '2.5.1' else 'kornia==0.8.2'


@MODELS.register_module()
class ClsDataPreprocessor(AnyChannels):
    """Normalises images; in training also augments them and mixes their labels (section 5.1).

    The order is RandAugment, normalisation, random erasing, then mixup or CutMix, which write soft labels to each
    sample's ``gt_score``. An augmentation whose argument is None or 0 is off. They need kornia, and are computed in
    float32 under autocast too.

    Args:
        num_classes: Number of classes; :class:`ImageClassifier` passes its head's.
        mean, std: Per channel, in the range 0 to 255; in RGB order if ``bgr_to_rgb``.
        rand_augment: Keyword arguments of :func:`batch_augments.rand_augment`; only for 3 channels.
        erasing: Probability that a rectangle of an image is replaced by noise.
        mixup, cutmix, switch_prob: See :func:`batch_augments.mix`.
        kwargs: ``bgr_to_rgb``, ``rgb_to_bgr``, ``non_blocking``.

    Shape:
        - Input: ``inputs``, images (C, H, W) of one size in the range 0 to 255, and ``data_samples`` with ``gt_label``.
        - Output: ``inputs`` (B, C, H, W), and the samples.

    Raises:
        ValueError: A rate is out of range, or an augmentation is on and kornia cannot be imported, or the images do not
            have 3 channels for ``rand_augment``.
        TypeError: ``rand_augment`` has an unknown key.
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
        self.num_classes, self.rand_augment = num_classes, rand_augment
        self.erasing = erasing or 0.0
        self.mixing = dict(mixup=mixup or 0.0, cutmix=cutmix or 0.0, switch_prob=switch_prob)
        for name, rate in dict(erasing=self.erasing, **self.mixing).items():
            if not isinstance(rate, (int, float)) or rate < 0 or (name in ('erasing', 'switch_prob') and rate > 1):
                raise ValueError(f'{name} must be None or not negative, and a probability at most 1; got {rate!r}')
        if rand_augment and len(mean) not in (1, 3):
            raise ValueError(f'rand_augment changes colours, and mean has {len(mean)} channels: set it to None')
        self.augments = bool(rand_augment or erasing or mixup or cutmix)
        if self.augments:
            with import_errors('the augmentations need kornia (or set all to None)', KORNIA):
                from pvt_mm.models import batch_augments
            inspect.signature(batch_augments.rand_augment).bind(None, None, **(rand_augment or {}))  # checks the keys

    def forward(self, data: dict, training: bool = False) -> dict:
        data = self.cast_data(data)
        images, samples = data['inputs'], data.get('data_samples')
        images = images if isinstance(images, Tensor) else torch.stack(images)
        if not training or not self.augments:
            return dict(inputs=self.normalize(images, samples or ()), data_samples=samples)
        images = self.in_order(images).float()
        # All ranks have one seed. Without its rank, each would augment the repeats of an image in the same way.
        seed = torch.randint(2**31, ()).item() + get_rank()
        forked = torch.random.fork_rng([images.device] if images.is_cuda else [])
        with forked, torch.autocast(images.device.type, enabled=False):  # bfloat16 would move pixels
            torch.manual_seed(seed)
            return dict(inputs=self._augment(images, samples), data_samples=samples)

    def _augment(self, images: Tensor, samples: list[DataSample]) -> Tensor:
        from pvt_mm.models import batch_augments  # imports kornia, which only this needs

        if self.rand_augment:
            fill = self.mean.flatten() / 255
            images = batch_augments.rand_augment(images / 255, fill, **self.rand_augment) * 255
        images = (images - self.mean) / self.std
        if self.erasing:
            images = batch_augments.random_erasing(images, self.erasing)
        if self.mixing['mixup'] or self.mixing['cutmix']:
            labels = torch.cat([sample.gt_label for sample in samples])
            images, targets = batch_augments.mix(images, labels, self.num_classes, **self.mixing)
            for sample, target in zip(samples, targets, strict=True):
                sample.gt_score = target
        return images
