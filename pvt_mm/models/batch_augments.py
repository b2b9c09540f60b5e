"""The augmentations of ImageNet training, on whole batches and on their device, by kornia's operators (section 5.1).

The paper follows DeiT (Touvron et al., 2021), whose figures these functions take as their arguments. kornia's own
classes draw otherwise: one operation of RandAugment for a whole batch at one strength, mixup from a uniform
distribution, erasing with one colour. So the drawing is done here, for each image, as DeiT draws.
"""

import torch
from kornia import augmentation, enhance
from kornia.geometry.transform import get_rotation_matrix2d, warp_affine
from torch import Tensor

# RandAugment's operations, each the stronger the greater the magnitude, 0 to 1.
OPERATIONS = (
    'auto_contrast',
    'equalize',
    'invert',
    'rotate',
    'posterize',
    'solarize',
    'solarize_add',
    'color',
    'contrast',
    'brightness',
    'sharpness',
    'shear_x',
    'shear_y',
    'translate_x',
    'translate_y',
)


def rand_augment(
    images: Tensor, fill: Tensor, num_ops: int = 2, magnitude: float = 9, magnitude_std: float = 0.5, prob: float = 0.5
) -> Tensor:
    """RandAugment (Cubuk et al., 2020): applies ``num_ops`` operations, drawn for each image with replacement.

    Args:
        images: (B, 3, H, W), RGB from 0 to 1.
        fill: (3,), the colour of what comes from outside an image.
        num_ops: How many operations are drawn; each is applied with ``prob``.
        magnitude: Mean of the magnitude of each, from 0 to 10.
        magnitude_std: Its standard deviation.
        prob: See above.
    """
    for _ in range(num_ops):
        drawn = torch.randint(len(OPERATIONS), (len(images),))
        drawn[torch.rand(len(images)) >= prob] = -1
        levels = (magnitude + magnitude_std * torch.randn(len(images))).clamp(0, 10) / 10
        changed = images.clone()
        for i in drawn.unique().tolist():
            if i >= 0:
                rows = (drawn == i).nonzero()[:, 0].to(images.device)
                level = levels[drawn == i].to(images)
                changed[rows] = apply_operation(OPERATIONS[i], images[rows], level, fill)
        images = changed
    return images


def apply_operation(name: str, images: Tensor, level: Tensor, fill: Tensor) -> Tensor:
    """Applies one of :data:`OPERATIONS` to images (B, 3, H, W) from 0 to 1, at ``level`` (B,) from 0 to 1.

    The strongest are 30 degrees, shears by 0.3, translations by 0.45 of a side, 0 of 8 bits, all above 0 inverted, 110
    of 255 added to what is below 128, and colour, contrast, brightness and sharpness times 0.1 or 1.9.
    """
    sign = torch.randint(0, 2, level.shape, device=level.device) * 2 - 1
    height, width = images.shape[2:]
    if name == 'auto_contrast':
        return enhance.normalize_min_max(images)
    if name == 'equalize':
        return enhance.equalize(images)
    if name == 'invert':
        return enhance.invert(images)
    if name == 'posterize':
        return enhance.posterize(images, 4 - (level * 4).int())
    if name == 'solarize':
        return enhance.solarize(images, 1 - level)
    if name == 'solarize_add':
        return torch.where(images < 128 / 255, (images + level[:, None, None, None] * 110 / 255).clamp(max=1), images)
    enhancers = dict(
        color=enhance.adjust_saturation_with_gray_subtraction,
        contrast=enhance.adjust_contrast_with_mean_subtraction,
        brightness=enhance.adjust_brightness_accumulative,
        sharpness=enhance.sharpness,
    )
    if name in enhancers:
        return enhancers[name](images, (1 + 0.9 * sign * level).clamp(min=0.1))
    if name == 'rotate':
        centre = level.new_tensor([[(width - 1) / 2, (height - 1) / 2]]).expand(len(level), -1)
        matrix = get_rotation_matrix2d(centre, 30 * sign * level, torch.ones_like(centre))
    else:
        row, column = dict(shear_x=(0, 1), shear_y=(1, 0), translate_x=(0, 2), translate_y=(1, 2))[name]
        strongest = dict(shear_x=0.3, shear_y=0.3, translate_x=0.45 * width, translate_y=0.45 * height)[name]
        matrix = torch.eye(2, 3, device=level.device, dtype=level.dtype).repeat(len(level), 1, 1)
        matrix[:, row, column] = strongest * sign * level
    return warp_affine(
        images, matrix, (height, width), mode='bilinear', padding_mode='fill', fill_value=fill.to(images)
    )


def random_erasing(images: Tensor, prob: float) -> Tensor:
    """Erases a rectangle (Zhong et al., 2020) of each image with ``prob``: standard normal noise takes its place.

    A rectangle has 2% to a third of the image's area and an aspect ratio from 0.3 to 1 / 0.3. ``images`` (B, 3, H, W)
    are normalised ones.
    """
    erase = augmentation.RandomErasing(scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3), value=1.0, p=prob)
    mask = erase(torch.zeros_like(images[:, :1]))
    return torch.where(mask > 0, torch.randn_like(images), images)


def mix(
    images: Tensor, labels: Tensor, num_classes: int, mixup: float, cutmix: float, switch_prob: float
) -> tuple[Tensor, Tensor]:
    """Mixes a batch with a permutation of itself, by mixup (Zhang et al., 2018) or CutMix (Yun et al., 2019).

    Args:
        images: (B, 3, H, W).
        labels: (B,), integers.
        num_classes: K.
        mixup: Both parameters of the Beta distribution of mixup's share; 0 for no mixup.
        cutmix: Those of CutMix's share of the area; 0 for no CutMix.
        switch_prob: How often it is CutMix where both are there.

    Returns:
        The mixed images, and the shares of the classes in them (B, K).
    """
    kwargs = dict(p=1.0, same_on_batch=True, data_keys=['input', 'class'])
    if cutmix and (not mixup or torch.rand(()) < switch_prob):
        images, mixed = augmentation.RandomCutMixV2(num_mix=1, beta=cutmix, **kwargs)(images, labels)
        mixed = mixed[0]  # (B, 3): both labels and the share of the second
    else:
        share = torch.distributions.Beta(mixup, mixup).sample()
        images, mixed = augmentation.RandomMixUpV2(lambda_val=(share, share), **kwargs)(images, labels)
    first, second, share = mixed.unbind(1)
    one_hot = torch.eye(num_classes, device=images.device)
    return images, one_hot[first.long()] * (1 - share[:, None]) + one_hot[second.long()] * share[:, None]
