"""Figure 6 of the paper, with PVTv2's linear SRA: GFLOPs of backbones against the size of the image."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track

from pvt_mm.analysis import flops
from pvt_mm.analysis.curves import label_ends
from pvt_mm.analysis.figures import OKABE_ITO, dress, new_figure
from pvt_mm.apis.config import load_config
from pvt_mm.utils.errors import InputError

# The config of each backbone, the settings to override in it, and its color.
BACKBONES = {
    'PVTv2-B2-Li': ('retinanet/pvt_v2_b2_li_1x.py', {}, 'blue'),
    'PVT-S': ('retinanet/pvt_s_1x.py', {}, 'sky blue'),
    'ResNet-50': ('retinanet/r50_1x.py', {}, 'orange'),
    'ViT-S/16': ('retinanet/vit_s_p32_1x.py', {'model.backbone.patch_size': 16}, 'green'),
    'ViT-S/32': ('retinanet/vit_s_p32_1x.py', {}, 'green'),
}
SIDES = (224, 320, 416, 512, 640, 768, 896, 1024)


def count_scales(configs: Path, sides: Sequence[int]) -> dict[str, list[float]]:
    """Counts the GFLOPs (multiply-adds in 1e9) of each of :data:`BACKBONES` on square images, ``sides`` in pixels.

    Raises:
        InputError: A side is not a multiple of 32, as ViT-S/32 requires.
    """
    if any(side < 32 or side % 32 for side in sides):
        raise InputError(f'--sides {" ".join(map(str, sides))}: each must be a multiple of 32, as ViT-S/32 requires')
    gflops = {}
    for name in track(BACKBONES, 'counting', console=Console(stderr=True), transient=True):
        path, options, _ = BACKBONES[name]
        config = load_config(str(configs / path), options)
        gflops[name] = [flops.count_backbone(config, (side, side)) for side in sides]
    return gflops


def plot_scale(gflops: dict[str, list[float]], sides: Sequence[int]) -> Figure:
    """Plots what :func:`count_scales` returns against ascending sides, a line per backbone with its name at the end."""
    with new_figure(7, 4.4) as (figure, axes):
        ends = []
        for (name, line), marker, layer in zip(gflops.items(), 'oPs^v', range(9, 4, -1), strict=True):
            color = OKABE_ITO[BACKBONES[name][2]]  # the first lines are on top
            axes.plot(sides, line, color=color, marker=marker, linewidth=2, clip_on=False, zorder=layer)
            ends.append((sides[-1], line[-1], color, f'{name}  {line[-1]:.0f}'))
        dress(axes, 'Arithmetic of the backbone alone', 'side of the image (pixels)', 'GFLOPs (multiply-adds)')
        axes.set(ylim=(0, None), xticks=sides)
        figure.draw_without_rendering()  # computes the layout, which label_ends needs
        label_ends(axes, ends)
    return figure
