"""ImageNet augmentations of batches, on their device, with kornia's operators (section 5.1 of the paper).

The paper follows DeiT (Touvron et al., 2021). kornia's own classes sample differently: RandAugment applies one
operation at one strength to a whole batch, mixup is uniform, CutMix's boxes lie inside the image (and are 1.6 times as
large), and erasing fills with one colour. These functions therefore sample as DeiT does, mixup and CutMix once per
batch and the others per image, and leave only the image operations to kornia.
"""

import torch
import torch.nn.functional as F
from kornia import augmentation, enhance
from kornia.geometry.transform import get_rotation_matrix2d, warp_affine
from torch import Tensor

# RandAugment's operations; DeiT's set, in which each gets stronger with the magnitude.
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
    """Applies RandAugment (Cubuk et al., 2020): operations sampled for each image, with replacement.

    Args:
        images: (B, 3, H, W), RGB in the range 0 to 1.
        fill: (3,), the colour of pixels from outside an image.
        num_ops: Number of operations sampled for an image.
        magnitude: Mean of an operation's magnitude, 0 to 10.
        magnitude_std: Standard deviation of the magnitude.
        prob: Probability with which each sampled operation is applied.
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
    """Applies one of :data:`OPERATIONS` to images (B, 3, H, W) at strengths ``level`` (B,), both from 0 to 1.

    At level 1 an image is rotated by 30 degrees, sheared by 0.3, translated by 0.45 of a side, posterised to 0 bits,
    solarised above 0, or gets 110 / 255 added to values below 128 / 255; colour, contrast, brightness and sharpness are
    scaled by 0.1 or 1.9. Geometric operations and scalings get a random sign. ``fill`` (3,) is the colour of pixels
    from outside an image.
    """
    sign = torch.randint(0, 2, level.shape, device=level.device) * 2 - 1
    height, width = images.shape[2:]
    if name == 'auto_contrast':
        stretched = enhance.normalize_min_max(images)
        return torch.where(images.amax((2, 3), keepdim=True) > images.amin((2, 3), keepdim=True), stretched, images)
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
    fill = fill.to(images)
    warped = warp_affine(images, matrix, (height, width), mode='bicubic', padding_mode='fill', fill_value=fill)
    return warped.clamp(0, 1)


def random_erasing(images: Tensor, prob: float) -> Tensor:
    """Replaces a rectangle of each image by standard normal noise, with probability ``prob`` (Zhong et al., 2020).

    A rectangle has 2% to a third of the image's area and an aspect ratio of 0.3 to 1 / 0.3. ``images`` (B, 3, H, W) are
    normalised.
    """
    erase = augmentation.RandomErasing(scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3), value=1.0, p=prob)
    mask = erase(torch.zeros_like(images[:, :1]))
    return torch.where(mask > 0, torch.randn_like(images), images)


def mix(
    images: Tensor, labels: Tensor, num_classes: int, mixup: float, cutmix: float, switch_prob: float
) -> tuple[Tensor, Tensor]:
    """Mixes a batch with its reverse, by mixup (Zhang et al., 2018) or CutMix (Yun et al., 2019).

    Args:
        images: (B, 3, H, W).
        labels: (B,), integers.
        num_classes: K.
        mixup: Alpha of mixup's Beta(alpha, alpha) distribution; 0 turns mixup off.
        cutmix: Alpha of CutMix's; 0 turns CutMix off.
        switch_prob: Probability of CutMix if both are on.

    Returns:
        The mixed images, and their soft labels (B, K).
    """
    cut = cutmix and (not mixup or torch.rand(()).item() < switch_prob)
    alpha = cutmix if cut else mixup
    share = torch.distributions.Beta(alpha, alpha).sample().item()
    if cut:
        H, W = images.shape[2:]
        rows, columns = draw_box(H, W, 1 - share)
        images, other = images.clone(), images.flip(0)
        images[:, :, rows, columns] = other[:, :, rows, columns]
        share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (H * W)
    else:
        images = images.flip(0).lerp(images, share)
    targets = F.one_hot(labels, num_classes).float()
    return images, targets.flip(0).lerp(targets, share)


def draw_box(height: int, width: int, area: float) -> tuple[slice, slice]:
    """Returns the rows and columns of a random box with the image's aspect ratio and a share ``area`` of its area.

    The centre is uniform over the image, and the box is clipped to the image.
    """
    sides = []
    for length in (height, width):
        half, centre = int(length * area**0.5) // 2, torch.randint(length, ()).item()
        sides.append(slice(max(centre - half, 0), min(centre + half, length)))
    return sides[0], sides[1]
