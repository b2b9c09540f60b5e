"""The backbone a second time: section 3 of the paper, slowly, with whole matrices of attention and nothing fused."""

import torch
import torch.nn.functional as F
from torch import Tensor


def reference(weights: dict[str, Tensor], arch: dict, image: Tensor, out_indices: tuple[int, ...]) -> list[Tensor]:
    """Returns the maps (B, C, H, W) of the stages in ``out_indices``.

    Args:
        weights: The parameters of a PVT, by name.
        arch: Its sizes, as ``PVT(arch=...)`` takes them.
        image: (B, in_channels, H, W).
        out_indices: Stages, counted from 0.
    """

    def norm(x: Tensor, name: str, eps: float) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
        return x * weights[f'{name}.weight'] + weights[f'{name}.bias']

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f'{name}.weight'].mT + weights[f'{name}.bias']

    def embed(x: Tensor, name: str, P: int) -> tuple[Tensor, tuple[int, int]]:
        H, W = x.shape[2] // P, x.shape[3] // P
        patches = x[:, :, : H * P, : W * P].unflatten(3, (W, P)).unflatten(2, (H, P))  # (B, C, H, P, W, P)
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, N, C * P * P)
        x = patches @ weights[f'{name}.proj.weight'].flatten(1).mT + weights[f'{name}.proj.bias']
        return norm(x, f'{name}.norm', 1e-5), (H, W)

    def attend(x: Tensor, size: tuple[int, int], name: str, heads: int, R: int) -> Tensor:
        keys = embed(x.mT.unflatten(2, size), f'{name}.sr', R)[0] if R > 1 else x
        k, v = linear(keys, f'{name}.kv').chunk(2, -1)
        found = []
        for qh, kh, vh in zip(*(one.chunk(heads, -1) for one in (linear(x, f'{name}.q'), k, v)), strict=True):
            rows = qh.split(max(1, 2**22 // kh.shape[1]), 1)  # for memory's sake
            found.append(torch.cat([(row @ kh.mT / qh.shape[-1] ** 0.5).softmax(-1) @ vh for row in rows], 1))
        return linear(torch.cat(found, -1), f'{name}.proj')

    outputs = []
    for i in range(out_indices[-1] + 1):
        x, size = embed(image, f'stages.{i}.patch_embed', arch['patch_sizes'][i])
        table = weights[f'stages.{i}.pos_embed.table'].permute(0, 3, 1, 2)
        x = x + F.interpolate(table, size=size, mode='bilinear', align_corners=False).flatten(2).mT
        for j in range(arch['depths'][i]):
            name, heads, R = f'stages.{i}.layers.{j}', arch['num_heads'][i], arch['sr_ratios'][i]
            x = x + attend(norm(x, f'{name}.norm1', 1e-6), size, f'{name}.attn', heads, R)
            hidden = linear(norm(x, f'{name}.norm2', 1e-6), f'{name}.ffn.fc1')
            x = x + linear(hidden * (1 + torch.erf(hidden / 2**0.5)) / 2, f'{name}.ffn.fc2')
        image = x.mT.unflatten(2, size)
        if i in out_indices:
            outputs.append(image)
    return outputs


def spread(model: torch.nn.Module) -> torch.nn.Module:
    """Gives every parameter of a PVT a value that hides no mistake: no zeros, ones or nearly equal ones."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # biases and norms
                parameter.normal_(mean=float('norm' in name and name.endswith('weight')), std=0.3)
            elif 'pos_embed' in name:
                parameter.normal_(std=0.5)
            else:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return model
