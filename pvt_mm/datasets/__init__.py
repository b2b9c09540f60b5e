"""Datasets, transforms and samplers that MMEngine, MMDetection and MMSegmentation lack."""

from .image_folder import ImageFolder
from .repeat_aug_sampler import RepeatAugSampler
from .transforms import OnRGB, PackInputs, RandomResizedCrop

__all__ = ['ImageFolder', 'OnRGB', 'PackInputs', 'RandomResizedCrop', 'RepeatAugSampler']
