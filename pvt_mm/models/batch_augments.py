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


def _auto_contrast(images: Tensor, level: Tensor) -> Tensor:
    contrast = images.amax((2, 3), keepdim=True) > images.amin((2, 3), keepdim=True)
    return torch.where(contrast, enhance.normalize_min_max(images), images)


def _equalize(images: Tensor, level: Tensor) -> Tensor:
    mode = torch.get_deterministic_debug_mode()
    # PyTorch refuses cumsum on CUDA as not deterministic. These sums are of counts, and exact in any order.
    torch.set_deterministic_debug_mode('default')
    try:
        return enhance.equalize(images)
    finally:
        torch.set_deterministic_debug_mode(mode)


def _solarize_add(images: Tensor, level: Tensor) -> Tensor:
    return torch.where(images < 128 / 255, (images + level[:, None, None, None] * 110 / 255).clamp(max=1), images)


# RandAugment's operations; DeiT's set, in which each gets stronger with the magnitude.
TONES = {
    'auto_contrast': _auto_contrast,
    'equalize': _equalize,
    'invert': lambda images, level: enhance.invert(images),
    'posterize': lambda images, level: enhance.posterize(images, 4 - (level * 4).int()),
    'solarize': lambda images, level: enhance.solarize(images, 1 - level),
    'solarize_add': _solarize_add,
}
SCALINGS = {
    'color': enhance.adjust_saturation_with_gray_subtraction,
    'contrast': enhance.adjust_contrast_with_mean_subtraction,
    'brightness': enhance.adjust_brightness_accumulative,
    'sharpness': enhance.sharpness,
}
MOVES = {'shear_x': (0, 1), 'shear_y': (1, 0), 'translate_x': (0, 2), 'translate_y': (1, 2)}  # in an affine matrix
OPERATIONS = (*TONES, *SCALINGS, *MOVES, 'rotate')


def rand_augment(
    images: Tensor, fill: Tensor, num_ops: int = 2, magnitude: float = 9, magnitude_std: float = 0.5, prob: float = 0.5
) -> Tensor:
    """Applies RandAugment (Cubuk et al., 2020) to RGB images (B, 3, H, W) in the range 0 to 1.

    ``num_ops`` operations are sampled for each image, with replacement, and applied with probability ``prob``. Their
    magnitudes are normally distributed and clipped to 0 to 10. ``fill`` (3,) is the colour outside an image.
    """
    for _ in range(num_ops):
        drawn = torch.randint(len(OPERATIONS), (len(images),))
        drawn[torch.rand(len(images)) >= prob] = -1
        levels = (magnitude + magnitude_std * torch.randn(len(images))).clamp(0, 10) / 10
        changed = images.clone()
        for i in drawn[drawn >= 0].unique().tolist():
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
    if name in TONES:
        return TONES[name](images, level)
    signed = level * (torch.randint(0, 2, level.shape, device=level.device) * 2 - 1)
    if name in SCALINGS:
        return SCALINGS[name](images, (1 + 0.9 * signed).clamp(min=0.1))
    height, width = images.shape[2:]
    if name == 'rotate':
        centre = level.new_tensor([[(width - 1) / 2, (height - 1) / 2]]).expand(len(level), -1)
        matrix = get_rotation_matrix2d(centre, 30 * signed, torch.ones_like(centre))
    else:
        row, column = MOVES[name]
        strongest = 0.45 * (width, height)[row] if column == 2 else 0.3
        matrix = torch.eye(2, 3, device=level.device, dtype=level.dtype).repeat(len(level), 1, 1)
        matrix[:, row, column] = strongest * signed
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

    ``images`` are (B, 3, H, W), and ``labels`` (B,) integers. ``mixup`` and ``cutmix`` are the alphas of the methods'
    Beta(alpha, alpha) distributions; 0 turns a method off. With both on, CutMix has the probability ``switch_prob``.

    Returns:
        The mixed images, and their soft labels (B, num_classes).
    """
    cut = cutmix and (not mixup or torch.rand(()).item() < switch_prob)
    alpha = cutmix if cut else mixup
    share = torch.distributions.Beta(alpha, alpha).sample().item()
    if cut:
        H, W = images.shape[2:]
        rows, columns = (draw_span(side, (1 - share) ** 0.5) for side in (H, W))
        images, other = images.clone(), images.flip(0)
        images[:, :, rows, columns] = other[:, :, rows, columns]
        share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (H * W)
    else:
        images = images.flip(0).lerp(images, share)
    targets = F.one_hot(labels, num_classes).float()
    return images, targets.flip(0).lerp(targets, share)


def draw_span(length: int, share: float) -> slice:
    """Returns a random span of a share of a side, with its centre anywhere on the side, clipped at its ends."""
    half, centre = int(length * share) // 2, torch.randint(length, ()).item()
    return slice(max(centre - half, 0), min(centre + half, length))
