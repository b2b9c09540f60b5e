"""Prints what backbones cost on a GPU at 800 x 1344: counted, not measured.

Usage: ``python -m tests.simulated_cuda.counts``. Forward and backward are a training step; ms is the least time of a
step and of inference on an H200, where bytes alone take time; peak is in training.
"""

from functools import partial

from tests.simulated_cuda.cases import BF16, FP32, count_step, cuda  # before torch

# isort: split
from torch import nn

from pvt_mm.models.archs import ARCHS
from pvt_mm.models.backbone import PVT, PVTv2
from pvt_mm.models.eager import replace_layers
from pvt_mm.models.mixed_precision import MixedFFN, MixedLinearSRA, MixedSRA
from pvt_mm.models.padded_heads import PaddedSRA
from pvt_mm.models.pvt import FFN, SRA, EncoderLayer
from pvt_mm.models.pvt_v2 import EncoderLayerV2, LinearSRA
from pvt_mm.models.residual import OnePassLayer, OnePassLayerV2

H200_GB_PER_MS = 4.8


def plain(arch: str) -> nn.Module:
    """Our PVT or PVTv2 with the layers of pvt.py and pvt_v2.py."""
    model = PVT(arch) if arch in ARCHS else PVTv2(arch)
    replace_layers(model, {OnePassLayer: EncoderLayer, MixedFFN: FFN, MixedSRA: SRA, PaddedSRA: SRA})
    replace_layers(model, {OnePassLayerV2: EncoderLayerV2, MixedLinearSRA: LinearSRA})
    return model


def mmdets() -> nn.Module:
    from mmdet.models.backbones.pvt import PyramidVisionTransformer

    return PyramidVisionTransformer(embed_dims=64, num_layers=list(ARCHS['small'].depths), drop_path_rate=0.1)


ROWS = {
    'PVT-Small, bfloat16, batch 16': (partial(PVT, 'small'), BF16, 16),
    '... with plain layers': (partial(plain, 'small'), BF16, 16),
    "... MMDetection's": (mmdets, BF16, 16),
    'PVT-Small, bfloat16, batch 2': (partial(PVT, 'small'), BF16, 2),
    '... with plain layers ': (partial(plain, 'small'), BF16, 2),
    "... MMDetection's ": (mmdets, BF16, 2),
    'PVT-Small-Wide, float32, batch 2': (partial(PVT, 'small_wide'), FP32, 2),
    '... with plain layers  ': (partial(plain, 'small_wide'), FP32, 2),
    'PVTv2-B2, bfloat16, batch 16': (partial(PVTv2, 'b2'), BF16, 16),
    '... with plain layers   ': (partial(plain, 'b2'), BF16, 16),
    'PVTv2-B2-Linear, bfloat16, batch 16': (partial(PVTv2, 'b2_li'), BF16, 16),
    '... with plain layers    ': (partial(plain, 'b2_li'), BF16, 16),
}


def main() -> None:
    titles = 'forward GB', 'backward GB', 'both GB', 'ms', 'kernels', 'saved GB', 'peak GB', 'inference GB', 'ms'
    print(f'{"":36}' + ''.join(f'{title:>13}' for title in titles))
    for name, case in ROWS.items():
        with cuda(simulated=True):
            one = count_step(*case)
        both, kernels = (one[f'forward_{unit}'] + one[f'backward_{unit}'] for unit in ('gb', 'kernels'))
        inference = one['inference_gb']
        figures = [one['forward_gb'], one['backward_gb'], both, both / H200_GB_PER_MS, kernels]
        figures += [one['saved_gb'], one['peak_gb'], inference, inference / H200_GB_PER_MS]
        print(f'{name:36}' + ''.join(f'{figure:13,.1f}' for figure in figures))


if __name__ == '__main__':
    main()
