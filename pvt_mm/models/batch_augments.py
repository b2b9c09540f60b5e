"""The augmentations of ImageNet training, on whole batches and on their device, by kornia's operators (section 5.1).

The paper follows DeiT (Touvron et al., 2021), whose figures these functions take as their arguments. kornia's own
classes draw otherwise: one operation of RandAugment for a whole batch at one strength, mixup from a uniform
distribution, CutMix with boxes that lie inside the image and so are 1.6 times as large, erasing with one colour. So the
drawing is done here, as DeiT draws: mixup and CutMix once for a batch, the others for each image.
"""

import torch
import torch.nn.functional as F
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
    """Mixes a batch with itself in reverse, by mixup (Zhang et al., 2018) or CutMix (Yun et al., 2019).

    Args:
        images: (B, 3, H, W).
        labels: (B,), integers.
        num_classes: K.
        mixup: Both parameters of the Beta distribution of an image's share in mixup; 0 for no mixup.
        cutmix: Those of its share of the area in CutMix; 0 for no CutMix.
        switch_prob: How often it is CutMix where both are there.

    Returns:
        The mixed images, and the shares of the classes in them (B, K).
    """
    cut = cutmix and (not mixup or torch.rand(()).item() < switch_prob)
    alpha = cutmix if cut else mixup
    share = torch.distributions.Beta(alpha, alpha).sample().item()
    if cut:
        rows, columns = draw_box(*images.shape[2:], 1 - share)
        images, other = images.clone(), images.flip(0)
        images[:, :, rows, columns] = other[:, :, rows, columns]
        share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (images.shape[2] * images.shape[3])
    else:
        images = images.flip(0).lerp(images, share)
    shares = F.one_hot(labels, num_classes).float()
    return images, shares.flip(0).lerp(shares, share)


def draw_box(height: int, width: int, area: float) -> tuple[slice, slice]:
    """Returns the rows and columns of a box of the image's shape and a share ``area`` of it, cut off at its border.

    The centre is drawn uniformly from the whole image.
    """
    sides = []
    for length in (height, width):
        half, centre = int(length * area**0.5) // 2, torch.randint(length, ()).item()
        sides.append(slice(max(centre - half, 0), min(centre + half, length)))
    return sides[0], sides[1]
