"""Attention weights of one query in one layer's spatial-reduction attention (equations 1 to 4), as a figure.

A key of PVT stands for R x R tokens; one of PVTv2's linear attention for a bin of tokens, which bins may share.
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from torch import Tensor, nn

from pvt_mm.analysis.figures import OKABE_ITO, STYLE, set_title
from pvt_mm.apis.inference import image_steps, run_steps
from pvt_mm.datasets.image_io import to_bgr
from pvt_mm.models.backbone import Backbone
from pvt_mm.models.pvt_v2 import LinearSRA
from pvt_mm.utils.errors import InputError, config_errors


class View(NamedTuple):
    """An image as a model's input, and where the input's pixels are in the image."""

    inputs: Tensor  # (1, C, H, W), normalised and padded
    scale: np.ndarray  # pixels of the image per pixel of the inputs, along x and y
    origin: np.ndarray  # x and y in the image of the inputs' upper left corner
    size: np.ndarray  # (w, h) of the inputs without padding, in pixels


class Attention(NamedTuple):
    """The attention of one query. ``weights`` sum to 1, together with ``class_token`` if there is one."""

    weights: np.ndarray  # (heads, h, w) over the map of keys
    class_token: np.ndarray | None  # (heads,), the weight of the class token, or None if the layer has none
    on_tokens: np.ndarray  # (heads, H, W), the weight of the key that a token is in; the mean if it is in several
    cells: tuple[np.ndarray, np.ndarray]  # (W + 1,) x and (H + 1,) y in the image of the edges of tokens
    padding: np.ndarray  # (heads,), the weight on tokens whose centres are outside of the image
    query: tuple[float, float] | None  # the centre of its patch, x and y in the image; None: the class token


class Grid(NamedTuple):
    """Where the tokens of a stage are, in pixels of the model's input."""

    stride: int
    start: float  # of the first token along either axis; the next one starts a stride later


def grid_of(backbone: Backbone, stage: int) -> Grid:
    """Returns where the tokens of a stage are: around the centres of what their patch embeddings see."""
    stride, centre = 1, 0.5
    for earlier in backbone.stages[: stage + 1]:
        embedding = earlier.patch_embed.proj
        centre += stride * ((embedding.kernel_size[0] - 1) / 2 - embedding.padding[0])
        stride *= embedding.stride[0]
    return Grid(stride, centre - stride / 2)


def attend(layer: nn.Module, x: Tensor, size: tuple[int, int], index: int) -> tuple[Tensor, Tensor]:
    """Computes the attention of one token of an SRA, with its weights, which fused attention does not return.

    The token is at ``index`` in the input x (1, N, C): a grid of ``size`` (H, W), after a class token if there is one.
    Returns the weights (heads, M) over the keys, M = N, (H // R) * (W // R) or 49, and the layer's output (C,) for it.
    """
    q = layer.q(x[0, index]).unflatten(0, (layer.num_heads, -1))  # (heads, d_head)
    keys = layer.reduce(x, size)[0]  # (M, C)
    k, v = layer.kv(keys).unflatten(1, (2, layer.num_heads, -1)).permute(1, 2, 0, 3)  # (heads, M, d_head) each
    weights = torch.einsum('hd,hmd->hm', q, k).mul(q.shape[1] ** -0.5).softmax(-1)
    return weights, layer.proj(torch.einsum('hm,hmd->hd', weights, v).flatten())


def shares_of(layer: nn.Module, count: int) -> Tensor:
    """Returns the share of each of ``count`` tokens in each key of an SRA, along one axis of a map: (keys, count)."""
    tokens = torch.eye(count)  # one in each channel
    if isinstance(layer, LinearSRA):
        return layer.pool(tokens[None, :, :, None])[0, :, :, 0].T
    return F.avg_pool1d(tokens[None], 1 if layer.sr is None else layer.sr.proj.stride[0])[0].T


def find_layer(model: nn.Module, stage: int | None, layer: int | None) -> tuple[Backbone, int, int]:
    """Returns the backbone in a model, and the indices of a stage and a layer: counted from 1, or None for the last.

    Raises:
        InputError: There is no PVT or PVTv2, no such stage or no such layer.
    """
    backbone = next((module for module in model.modules() if isinstance(module, Backbone)), None)
    if backbone is None:
        kind = type(getattr(model, 'backbone', model)).__name__
        raise InputError(f'the model has no PVT or PVTv2: its backbone is {kind}')
    stage = _counted('--stage', stage, len(backbone.stages), 'the model has stages')
    layer = _counted('--layer', layer, len(backbone.stages[stage].layers), f'stage {stage + 1} has layers')
    return backbone, stage, layer


def choose_heads(head: str, count: int) -> list[int] | None:
    """Returns the indices of the heads that ``head`` names: ``each``, a number from 1 on, or ``mean`` (None).

    Raises:
        InputError: It is not one of these, or there is no such head.
    """
    if head in ('each', 'mean'):
        return list(range(count)) if head == 'each' else None
    if not head.isdigit():
        raise InputError(f'--head {head}: name a head from 1 to {count}, or mean, or each')
    return [_counted('--head', int(head), count, 'the layer has heads')]


def _counted(flag: str, number: int | None, count: int, there_are: str) -> int:
    if number is not None and not 1 <= number <= count:
        raise InputError(f'{flag} {number}: {there_are} 1 to {count}')
    return (number or count) - 1


# Marks the image's pixels in the third channel of the coordinates; no pipeline pads with this value.
MARK = 5000.0


def view(config: Config, model: nn.Module, image: np.ndarray, path: str) -> View:
    """Prepares an image by the test pipeline of a model's config, and finds where its pixels end up.

    The image is (H, W) or (H, W, C), as the first transform of the pipeline loads it.

    Raises:
        InputError: The pipeline cannot take a single image.
    """
    steps = image_steps(config)[1:]
    H, W = image.shape[:2]
    # An image of coordinates goes through the same pipeline, in floating point, which Pillow cannot resize.
    x, y = np.meshgrid(np.arange(W) + 0.5, np.arange(H) + 0.5)
    coordinates = np.stack([x, y, np.full_like(x, MARK)], axis=-1).astype(np.float32)
    packed = run_steps(steps, image, path)
    where = run_steps([_by_opencv(step) for step in steps], coordinates, path)['inputs']
    with config_errors('the model cannot take a single image'):
        inputs = model.data_preprocessor(pseudo_collate([packed]))['inputs']
    inside = (where[2] - MARK).abs() < 1  # not padding
    (scale_x, origin_x), (scale_y, origin_y) = (_fit_line(where[axis], inside, axis) for axis in (0, 1))
    size = np.array([inside.any(0).sum(), inside.any(1).sum()])
    return View(inputs, np.array([scale_x, scale_y]), np.array([origin_x, origin_y]), size)


def _by_opencv(step: object) -> object:
    step = copy.copy(step)
    if hasattr(step, 'backend'):
        step.backend = 'cv2'
    return step


def _fit_line(coordinates: Tensor, inside: Tensor, axis: int) -> tuple[float, float]:
    """Fits image coordinates against pixels of the inputs, on their middle half; returns the slope and value at 0."""
    at = inside.any(axis).nonzero()[:, 0].numpy()
    coordinates = ((coordinates * inside).sum(axis) / inside.sum(axis).clamp(min=1)).numpy()[at]
    count = len(at)
    middle = np.arange(count // 4, max(count - count // 4, count // 4 + 2)).clip(max=count - 1)
    return tuple(np.polyfit(at[middle] + 0.5, coordinates[middle], 1))


@torch.no_grad()
def attention_of(
    backbone: Backbone, stage: int, layer: int, seen: View, query: tuple[float, float] | None, shape: tuple[int, int]
) -> Attention:
    """Computes the attention of a point of an image in a layer of a backbone in eval mode, both counted from 0.

    The query is the token whose patch contains x and y, in pixels of the image of ``shape`` (H, W); None: the class
    token.

    Raises:
        InputError: The point is outside of the model's input, or there is no class token.
    """
    tokens = {}
    attn = backbone.stages[stage].layers[layer].attn
    hook = attn.register_forward_pre_hook(lambda _, inputs: tokens.update(x=inputs[0], size=tuple(inputs[1])))
    try:
        backbone(seen.inputs)
    except ValueError as error:
        raise InputError(str(error)) from None
    finally:
        hook.remove()
    x, (H, W) = tokens['x'], tokens['size']
    grid = grid_of(backbone, stage)
    first = x.shape[1] - H * W  # 1 if a class token precedes the grid, else 0
    index, centre = 0, None
    if query is not None:
        column, row = _find_token(seen, query, shape, grid, (H, W))
        index = first + row * W + column
        centre = tuple((grid.start + (np.array([column, row]) + 0.5) * grid.stride) * seen.scale + seen.origin)
    elif not first:
        raise InputError("--query X Y is missing: only the last stage of PVT's classifiers has a class token instead")
    weights = attend(attn, x, (H, W), index)[0].cpu().numpy()
    across, down = (shares_of(attn, count).numpy() for count in (W, H))  # (w, W) and (h, H)
    keys, token = weights[:, first:].reshape(-1, len(down), len(across)), weights[:, 0] if first else None
    divided = down.T @ keys @ across  # (heads, H, W), what is of each token
    on_tokens = divided / np.outer(down.sum(0), across.sum(0)).clip(min=1e-9)  # 0 where a token is in no key
    sides = zip((W, H), seen.scale, seen.origin, strict=True)
    cells = tuple((grid.start + np.arange(count + 1) * grid.stride) * scale + origin for count, scale, origin in sides)
    centres = [(edges[1:] + edges[:-1]) / 2 for edges in cells]
    inside = np.outer((centres[1] < shape[0]) & (centres[1] > 0), (centres[0] < shape[1]) & (centres[0] > 0))
    return Attention(keys, token, on_tokens, cells, (divided * ~inside).sum((1, 2)), centre)


def _find_token(
    seen: View, query: tuple[float, float], shape: tuple[int, int], grid: Grid, size: tuple[int, int]
) -> np.ndarray:
    """Returns column and row of the token, in a map of ``size`` (H, W), that is at a point of an image."""
    point = np.array(query)
    position = (point + 0.5 - seen.origin) / seen.scale
    inside = (point >= 0) & (position >= 0) & (point < shape[::-1]) & (position < seen.size)
    if not inside.all():
        ends = np.sort([seen.origin, seen.origin + seen.size * seen.scale], axis=0)
        low = np.ceil(ends[0].clip(0) - 1e-3).astype(int)
        high = np.ceil(np.minimum(ends[1], shape[::-1]) - 1e-3).astype(int) - 1
        raise InputError(
            f"--query {query[0]:g} {query[1]:g} is outside of the model's input: X must be from {low[0]} to {high[0]} "
            f'and Y from {low[1]} to {high[1]}, in pixels of the image'
        )
    # Pixels at the right and lower edge that are in no token's cell belong to the last one.
    return np.minimum(((position - grid.start) // grid.stride).astype(int), (size[1] - 1, size[0] - 1))


def panels(weights: np.ndarray, heads: Sequence[int] | None) -> dict[str, np.ndarray]:
    """Returns the maps (h, w) by name: of the heads with these indices, or for None the mean of all, (heads, h, w)."""
    if heads is None:
        return {'mean of the heads': weights.mean(0)}
    return {f'head {head + 1}': weights[head] for head in heads}


def plot_attention(image: np.ndarray, found: Attention, heads: Sequence[int] | None, title: str) -> Figure:
    """Plots the weights of :func:`panels` over the image of :func:`view`, with the query marked.

    The opacity of the colour is proportional to the weight of a token. Each panel is scaled to its maximum; its title
    gives that of a key.
    """
    image = to_bgr(image)
    H, W = image.shape[:2]
    maps, keys = panels(found.on_tokens, heads), panels(found.weights, heads)
    count = len(maps) + 1
    columns = min(count, 4 if count % 3 else 3)
    rows = -(-count // columns)
    width = 3.0 if len(maps) > 1 else 4.0
    with matplotlib.rc_context({**STYLE, 'axes.titlesize': 11, 'axes.titlepad': 5, 'axes.titleweight': 'normal'}):
        figure = Figure(figsize=(width * columns, (width * H / W + 0.3) * rows + 0.3), layout='constrained')
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis in axes:
            axis.set_axis_off()
        axes[0].imshow(image[..., ::-1], extent=(0, W, H, 0), interpolation='bicubic')
        axes[0].set_title('the query' if found.query else 'the query is the class token')
        left, right, top, bottom = (cells[i] for cells in found.cells for i in (0, -1))
        for axis, (name, weights) in zip(axes[1:], maps.items(), strict=False):
            gray = dict(cmap='gray', vmin=-200, vmax=255)
            axis.imshow(image.mean(-1), extent=(0, W, H, 0), interpolation='bicubic', **gray)
            colors = np.empty((*weights.shape, 4))
            colors[..., :3], colors[..., 3] = to_rgb(OKABE_ITO['vermilion']), 0.8 * weights / weights.max()
            axis.imshow(colors, extent=(left, right, bottom, top), interpolation='nearest')
            axis.set_title(f'{name}: maximum {keys[name].max():.1%}')
        for axis in axes[:count]:
            axis.set(xlim=(0, W), ylim=(H, 0))
            if found.query:
                mark = dict(markersize=11, color=OKABE_ITO['sky blue'], markeredgecolor='black', markeredgewidth=1.5)
                axis.plot(*found.query, 'o', **mark)
        set_title(figure, title)
    return figure
