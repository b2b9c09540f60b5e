"""The backbones a second time: the papers' equations, slowly, with whole matrices of attention and nothing fused."""

import torch
import torch.nn.functional as F
from torch import Tensor


def reference(weights: dict[str, Tensor], arch: dict, image: Tensor, out_indices: tuple[int, ...]) -> list[Tensor]:
    """Returns the maps (B, C, H, W) of the stages in ``out_indices``.

    Args:
        weights: The parameters of a PVT or a PVTv2, by name.
        arch: Its sizes, as ``PVT(arch=...)`` or ``PVTv2(arch=...)`` takes them.
        image: (B, in_channels, H, W).
        out_indices: Stages, counted from 0.
    """
    is_v2, linear_attention = 'strides' in arch, arch.get('linear', False)

    def norm(x: Tensor, name: str, eps: float) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
        return x * weights[f'{name}.weight'] + weights[f'{name}.bias']

    def gelu(x: Tensor) -> Tensor:
        return x * (1 + torch.erf(x / 2**0.5)) / 2

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f'{name}.weight'].flatten(1).mT + weights[f'{name}.bias']

    def embed(x: Tensor, name: str, stride: int, padding: int = 0) -> tuple[Tensor, tuple[int, int]]:
        kernel = weights[f'{name}.proj.weight'].shape[2]
        H, W = ((side + 2 * padding - kernel) // stride + 1 for side in x.shape[2:])
        patches = F.unfold(x, kernel, padding=padding, stride=stride).mT  # (B, N, C * kernel * kernel)
        return norm(linear(patches, f'{name}.proj'), f'{name}.norm', 1e-5), (H, W)

    def pool(x: Tensor) -> Tensor:
        """Returns the means (B, C, 7, 7) of 7 x 7 bins, which share rows and columns where 7 does not divide a map."""
        rows, columns = ([(i * n // 7, -(-(i + 1) * n // 7)) for i in range(7)] for n in x.shape[2:])
        return torch.stack([
            torch.stack([x[:, :, top:bottom, left:right].mean((2, 3)) for left, right in columns], 2)
            for top, bottom in rows
        ], 2)  # fmt: skip

    def convolve(x: Tensor, size: tuple[int, int], name: str) -> Tensor:
        """Returns the depthwise 3 x 3 convolution of tokens (B, N, C), as a sum of nine shifted maps."""
        kernel, (H, W) = weights[f'{name}.weight'], size
        padded = F.pad(x.mT.unflatten(2, size), (1, 1, 1, 1))
        shifted = [
            padded[:, :, i : i + H, j : j + W] * kernel[:, :, i, j, None] for i in range(3) for j in range(3)
        ]  # (B, C, H, W) * (C, 1, 1)
        return sum(shifted).flatten(2).mT + weights[f'{name}.bias']

    def attend(x: Tensor, size: tuple[int, int], name: str, heads: int, R: int) -> Tensor:
        keys = x
        if linear_attention:
            keys = gelu(embed(pool(x.mT.unflatten(2, size)), f'{name}.sr', 1)[0])
        elif R > 1:
            keys = embed(x.mT.unflatten(2, size), f'{name}.sr', R)[0]
        k, v = linear(keys, f'{name}.kv').chunk(2, -1)
        found = []
        for qh, kh, vh in zip(*(one.chunk(heads, -1) for one in (linear(x, f'{name}.q'), k, v)), strict=True):
            rows = qh.split(max(1, 2**22 // kh.shape[1]), 1)  # for memory's sake
            found.append(torch.cat([(row @ kh.mT / qh.shape[-1] ** 0.5).softmax(-1) @ vh for row in rows], 1))
        return linear(torch.cat(found, -1), f'{name}.proj')

    def feed_forward(x: Tensor, size: tuple[int, int], name: str) -> Tensor:
        hidden = linear(x, f'{name}.fc1')
        if linear_attention:
            hidden = hidden.clamp(min=0)
        if is_v2:
            hidden = convolve(hidden, size, f'{name}.dwconv')
        return linear(gelu(hidden), f'{name}.fc2')

    outputs = []
    for i in range(out_indices[-1] + 1):
        stride = arch['strides' if is_v2 else 'patch_sizes'][i]
        x, size = embed(image, f'stages.{i}.patch_embed', stride, stride - 1 if is_v2 else 0)
        if not is_v2:
            table = weights[f'stages.{i}.pos_embed.table'].permute(0, 3, 1, 2)
            x = x + F.interpolate(table, size=size, mode='bilinear', align_corners=False).flatten(2).mT
        for j in range(arch['depths'][i]):
            name, heads, R = f'stages.{i}.layers.{j}', arch['num_heads'][i], arch['sr_ratios'][i]
            x = x + attend(norm(x, f'{name}.norm1', 1e-6), size, f'{name}.attn', heads, R)
            x = x + feed_forward(norm(x, f'{name}.norm2', 1e-6), size, f'{name}.ffn')
        if is_v2:
            x = norm(x, f'stages.{i}.norm', 1e-6)
        image = x.mT.unflatten(2, size)
        if i in out_indices:
            outputs.append(image)
    return outputs


def spread(model: torch.nn.Module) -> torch.nn.Module:
    """Gives every parameter of a backbone a value that hides no mistake: no zeros, ones or nearly equal ones."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # biases and norms
                parameter.normal_(mean=float('norm' in name and name.endswith('weight')), std=0.3)
            elif 'pos_embed' in name:
                parameter.normal_(std=0.5)
            else:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return model
