"""What a point of an image attends to: the weights of one layer's spatial-reduction attention (equations 1 to 4)."""

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from torch import Tensor, nn

from pvt_mm.analysis.figures import OKABE_ITO, STYLE
from pvt_mm.engine.inference import image_steps
from pvt_mm.errors import WRONG_CONFIG, InputError
from pvt_mm.models.pvt import PVT, SRA


class View(NamedTuple):
    """What a model sees of a picture.

    Attributes:
        inputs: (1, C, H, W), normalised and padded.
        scale: Pixels of the picture to one of the inputs, along x and along y.
        origin: x and y in the picture of the inputs' left upper corner.
        size: (w, h) of the inputs without padding.
    """

    inputs: Tensor
    scale: np.ndarray
    origin: np.ndarray
    size: np.ndarray


class Attention(NamedTuple):
    """The attention of one query.

    Attributes:
        weights: (heads, h, w) over the map of keys. They sum to 1, with ``class_token``'s where there is one.
        class_token: (heads,), or None where the layer has none.
        cells: x and y in the picture of the edges of the keys' patches, (w + 1,) and (h + 1,).
        padding: (heads,), the weight on keys whose centres are outside of the picture.
        query: x and y in the picture of the centre of the token that asks; None for the class token.
    """

    weights: np.ndarray
    class_token: np.ndarray | None
    cells: tuple[np.ndarray, np.ndarray]
    padding: np.ndarray
    query: tuple[float, float] | None


def attend(layer: SRA, x: Tensor, size: tuple[int, int], index: int) -> tuple[Tensor, Tensor]:
    """Computes the attention of one token from a layer's own queries, keys and values.

    Args:
        layer: The attention.
        x: (1, N, C), the tokens that it gets.
        size: (H, W), their grid; a class token is before it.
        index: Of the token that asks, 0 to N - 1.

    Returns:
        The weights (heads, M) over the keys, M = N or (H // R) * (W // R); and (C,), what the layer makes of the token.
    """
    q = layer.q(x[0, index]).unflatten(0, (layer.num_heads, -1))  # (heads, d_head)
    if layer.sr is not None:
        x = layer.sr(x.unflatten(1, size)).flatten(1, 2)  # (1, M, C)
    k, v = layer.kv(x[0]).unflatten(1, (2, layer.num_heads, -1)).permute(1, 2, 0, 3)  # (heads, M, d_head) each
    weights = torch.einsum('hd,hmd->hm', q, k).mul(q.shape[1] ** -0.5).softmax(-1)
    return weights, layer.proj(torch.einsum('hm,hmd->hd', weights, v).flatten())


def find_layer(model: nn.Module, stage: int | None, layer: int | None) -> tuple[PVT, int, int]:
    """Returns the PVT in a model and the indices, from 0, of a stage and of a layer in it that are counted from 1.

    Args:
        model: Any with one PVT.
        stage: The last if None.
        layer: The last of the stage if None.

    Raises:
        InputError: There is no PVT, no such stage, or no such layer; the message says which there are.
    """
    backbone = next((module for module in model.modules() if isinstance(module, PVT)), None)
    if backbone is None:
        raise InputError(f'the model has no PVT: its backbone is {type(getattr(model, "backbone", model)).__name__}')
    stage = _counted('--stage', stage, len(backbone.stages), 'the model has stages')
    layer = _counted('--layer', layer, len(backbone.stages[stage].layers), f'stage {stage + 1} has layers')
    return backbone, stage, layer


# No pipeline pads with it: the colour of a picture's pixels, beside where they are.
MARK = 5000.0


def choose_heads(head: str, count: int) -> list[int] | None:
    """Returns the heads, from 0, that ``head`` asks for: ``each``, a number from 1 on, or ``mean``, which is None.

    Raises:
        InputError: It is none of these, or there is no such head.
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


def view(config: Config, model: nn.Module, picture: np.ndarray, path: str) -> View:
    """Brings a picture into a model by the test pipeline of its config, and finds where each of its pixels goes.

    Args:
        config: The model's.
        model: A detector, a segmentor or a classifier.
        picture: (H, W, 3) BGR.
        path: Of its file.

    Raises:
        InputError: The pipeline is none of a single picture's.
    """
    steps = image_steps(config)[1:]
    H, W = picture.shape[:2]
    # A picture whose colours say where they are goes the same way, as floats, which Pillow cannot resize.
    x, y = np.meshgrid(np.arange(W) + 0.5, np.arange(H) + 0.5)
    places = np.stack([x, y, np.full_like(x, MARK)], axis=-1).astype(np.float32)
    try:
        packed, where = _run(steps, picture, path), _run([_by_opencv(step) for step in steps], places, path)['inputs']
        inside = (where[2] - MARK).abs() < 1  # not what the pipeline pads with
        inputs = model.data_preprocessor(pseudo_collate([packed]))['inputs']
    except (*WRONG_CONFIG, IndexError) as error:
        raise InputError(f'the test pipeline cannot take one picture: {type(error).__name__}: {error}') from error
    (scale_x, origin_x), (scale_y, origin_y) = (_line(where[axis], inside, axis) for axis in (0, 1))
    size = np.array([inside.any(0).sum(), inside.any(1).sum()])
    return View(inputs, np.array([scale_x, scale_y]), np.array([origin_x, origin_y]), size)


def _run(steps: Sequence, picture: np.ndarray, path: str) -> dict:
    shape = picture.shape[:2]
    results = dict(img=picture, img_path=path, img_id=0, img_shape=shape, ori_shape=shape)
    for step in steps:
        results = step(results)
    return results


def _by_opencv(step: object) -> object:
    if not hasattr(step, 'backend'):
        return step
    step = copy.copy(step)
    step.backend = 'cv2'
    return step


def _line(places: Tensor, inside: Tensor, axis: int) -> tuple[float, float]:
    """Returns slope and value at 0 of places in a picture against pixels of the inputs, by the middle half of them."""
    at = inside.any(axis).nonzero()[:, 0].numpy()
    places = ((places * inside).sum(axis) / inside.sum(axis).clamp(min=1)).numpy()[at]
    count = len(at)
    middle = np.arange(count // 4, max(count - count // 4, count // 4 + 2)).clip(max=count - 1)
    return tuple(np.polyfit(at[middle] + 0.5, places[middle], 1))


@torch.no_grad()
def attention_of(
    backbone: PVT, stage: int, layer: int, seen: View, query: tuple[float, float] | None, picture: tuple[int, int]
) -> Attention:
    """Computes what a point of a picture attends to.

    Args:
        backbone: The PVT, in eval mode.
        stage: From 0.
        layer: From 0.
        seen: What the model sees of the picture.
        query: x and y in pixels of the picture; the token whose patch they are in asks. None is the class token.
        picture: (H, W) of the picture.

    Raises:
        InputError: The point is outside of what the model sees, or there is no class token.
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
    stride = math.prod(backbone.arch.patch_sizes[: stage + 1])
    first = x.shape[1] - H * W  # a class token is before the grid
    index, centre = 0, None
    if query is not None:
        column, row = _token(seen, query, picture, stride, (H, W))
        index = first + row * W + column
        centre = tuple((np.array([column, row]) + 0.5) * stride * seen.scale + seen.origin)
    elif not first:
        raise InputError('--query X Y is needed: only the last stage of a classifier has a class token that can ask')
    weights = attend(attn, x, (H, W), index)[0].cpu().numpy()
    R = backbone.arch.sr_ratios[stage]
    h, w = H // R, W // R
    weights, token = weights[:, first:].reshape(-1, h, w), weights[:, 0] if first else None
    cells = tuple(
        np.arange(count + 1) * stride * R * scale + origin
        for count, scale, origin in zip((w, h), seen.scale, seen.origin, strict=True)
    )
    centres = [(edges[1:] + edges[:-1]) / 2 for edges in cells]
    inside = np.outer((centres[1] < picture[0]) & (centres[1] > 0), (centres[0] < picture[1]) & (centres[0] > 0))
    return Attention(weights, token, cells, (weights * ~inside).sum((1, 2)), centre)


def _token(seen: View, query: tuple[float, float], picture: tuple[int, int], stride: int, grid: tuple[int, int]):
    """Returns column and row of the token in whose patch a point of the picture is."""
    point = np.array(query)
    place = (point + 0.5 - seen.origin) / seen.scale
    inside = (point >= 0) & (place >= 0) & (point < picture[::-1]) & (place < seen.size)
    if not inside.all():
        ends = np.sort([seen.origin, seen.origin + seen.size * seen.scale], axis=0)
        low = np.ceil(ends[0].clip(0) - 1e-3).astype(int)
        high = np.ceil(np.minimum(ends[1], picture[::-1]) - 1e-3).astype(int) - 1
        raise InputError(
            f'--query {query[0]:g} {query[1]:g} is outside of what the model sees of the picture: X is from {low[0]} '
            f'to {high[0]}, Y from {low[1]} to {high[1]}'
        )
    return np.minimum(
        (place // stride).astype(int), (grid[1] - 1, grid[0] - 1)
    )  # what fills no patch is its neighbour's


def panels(found: Attention, heads: Sequence[int] | None) -> dict[str, np.ndarray]:
    """Returns the maps (h, w) to draw, by their names: of some heads, from 0, or for None of their mean."""
    if heads is None:
        return {'mean of the heads': found.weights.mean(0)}
    return {f'head {head + 1}': found.weights[head] for head in heads}


def plot_attention(picture: np.ndarray, found: Attention, heads: Sequence[int] | None, title: str) -> Figure:
    """Draws the weights over the picture, a panel a head or one of their mean, the query marked.

    A panel's colour is the deeper the greater the weight, up to the panel's greatest, which it names.

    Args:
        picture: (H, W, 3) BGR.
        found: The attention.
        heads: See :func:`panels`.
        title: Of the whole.
    """
    H, W = picture.shape[:2]
    maps = panels(found, heads)
    count = len(maps) + 1
    columns = min(count, 4 if count % 3 else 3)
    rows = -(-count // columns)
    width = 3.0 if len(maps) > 1 else 4.0
    with matplotlib.rc_context({**STYLE, 'axes.titlesize': 11, 'axes.titlepad': 5, 'axes.titleweight': 'normal'}):
        figure = Figure(figsize=(width * columns, (width * H / W + 0.3) * rows + 0.3), layout='constrained')
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis in axes:
            axis.set_axis_off()
        axes[0].imshow(picture[..., ::-1], extent=(0, W, H, 0), interpolation='bicubic')
        axes[0].set_title('the query' if found.query else 'the query is the class token')
        left, right, top, bottom = (cells[i] for cells in found.cells for i in (0, -1))
        for axis, (name, weights) in zip(axes[1:], maps.items(), strict=False):
            axis.imshow(
                picture.mean(-1), extent=(0, W, H, 0), cmap='gray', vmin=-200, vmax=255, interpolation='bicubic'
            )
            colors = np.empty((*weights.shape, 4))
            colors[..., :3], colors[..., 3] = to_rgb(OKABE_ITO['vermilion']), 0.8 * weights / weights.max()
            axis.imshow(colors, extent=(left, right, bottom, top), interpolation='nearest')
            axis.set_title(f'{name}: at most {weights.max():.1%}')
        for axis in axes[:count]:
            axis.set(xlim=(0, W), ylim=(H, 0))
            if found.query:
                mark = dict(markersize=11, color=OKABE_ITO['sky blue'], markeredgecolor='black', markeredgewidth=1.5)
                axis.plot(*found.query, 'o', **mark)
        figure.suptitle(title, fontsize=11)
    return figure
