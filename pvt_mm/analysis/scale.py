"""Figure 6 of the paper: GFLOPs of backbones against the size of the image."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track

from pvt_mm.analysis import flops
from pvt_mm.analysis.curves import label_ends
from pvt_mm.analysis.figures import LINE_COLORS, MARKERS, dress, new_figure
from pvt_mm.apis.config import load_config
from pvt_mm.utils.errors import InputError

# The config of each backbone, and the settings to override in it.
BACKBONES = {
    'PVT-S': ('retinanet/pvt_s_1x.py', {}),
    'ResNet-50': ('retinanet/r50_1x.py', {}),
    'ViT-S/16': ('retinanet/vit_s_p32_1x.py', {'model.backbone.patch_size': 16}),
    'ViT-S/32': ('retinanet/vit_s_p32_1x.py', {}),
}
SIDES = (224, 320, 416, 512, 640, 768, 896, 1024)


def count_scales(configs: Path, sides: Sequence[int]) -> dict[str, list[float]]:
    """Counts the GFLOPs (multiply-adds in 1e9) of each of :data:`BACKBONES` on square images, ``sides`` in pixels.

    Raises:
        InputError: A side is not a multiple of 32, as ViT-S/32 requires.
    """
    if any(side < 32 or side % 32 for side in sides):
        raise InputError(f'--sides {" ".join(map(str, sides))}: each must be a multiple of 32, as ViT-S/32 requires')
    gflops = {name: [] for name in BACKBONES}
    jobs = [(name, side) for name in BACKBONES for side in sides]
    for name, side in track(jobs, 'counting', console=Console(stderr=True), transient=True):
        path, options = BACKBONES[name]
        gflops[name].append(flops.count_backbone(load_config(str(configs / path), options), (side, side)))
    return gflops


def plot_scale(gflops: dict[str, list[float]], sides: Sequence[int]) -> Figure:
    """Plots what :func:`count_scales` returns against ascending sides, a line per backbone with its name at the end."""
    with new_figure(7, 4.4) as (figure, axes):
        ends = []
        for (name, line), color, marker in zip(gflops.items(), LINE_COLORS, MARKERS, strict=False):
            axes.plot(sides, line, color=color, marker=marker, linewidth=2, clip_on=False)
            ends.append((sides[-1], line[-1], color, f'{name}  {line[-1]:.0f}'))
        dress(axes, 'Arithmetic of the backbone alone', 'side of the image (pixels)', 'GFLOPs (multiply-adds)')
        axes.set(ylim=(0, None), xticks=sides)
        figure.draw_without_rendering()  # computes the layout, which label_ends needs
        label_ends(axes, ends)
    return figure
