"""Operators that PyTorch lacks or exports as something slow, each with its translation to standard ONNX operators.

In PyTorch they run MMCV's code, so that an exportable model can be called and compared without ONNX.
"""

from collections.abc import Callable

import torch
from onnxscript import BOOL, FLOAT, INT64, graph, script
from onnxscript import opset18 as op  # the one that torch.onnx.export translates to, before it converts to another
from torch import Tensor


@torch.library.custom_op('pvt_mm::nms', mutates_args=())
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, keep: int) -> Tensor:
    """Returns the indices (B, keep) of the boxes that non-maximum suppression keeps, best first, then -1.

    Args:
        boxes: (B, N, 4), x1, y1, x2, y2.
        scores: (B, N). A box whose score is 0 is dropped.
        iou_threshold: A box that overlaps a better one by more is suppressed.
        keep: Maximum number of boxes an image.
    """
    from mmcv.ops import nms

    indices = boxes.new_full((len(boxes), keep), -1, dtype=torch.int64)
    for i in range(len(boxes)):
        kept = nms(boxes[i].contiguous(), scores[i].contiguous(), iou_threshold)[1]
        kept = kept[scores[i, kept] > 0][:keep]
        indices[i, : len(kept)] = kept
    return indices


@nms.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float, keep: int) -> Tensor:
    return boxes.new_empty((boxes.shape[0], keep), dtype=torch.int64)


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float, keep: int) -> Tensor:
    number = op.Shape(boxes, start=0, end=1)  # B
    most = op.Constant(value_ints=[keep])
    # (M, 3): image, class, box; the boxes of an image one after the other, best first
    selected = op.NonMaxSuppression(
        boxes,
        op.Unsqueeze(scores, op.Constant(value_ints=[1])),
        most,
        op.Constant(value_floats=[iou_threshold]),
        op.Constant(value_floats=[0.0]),
    )
    image, box = (op.Gather(selected, op.Constant(value_int=column), axis=1) for column in (0, 2))
    images = op.Range(op.Constant(value_int=0), op.Squeeze(number), op.Constant(value_int=1))
    is_of = op.Cast(op.Equal(op.Unsqueeze(image, op.Constant(value_ints=[1])), images), to=7)  # (M, B)
    rank = op.ReduceSum(
        op.Mul(is_of, op.CumSum(is_of, op.Constant(value_int=0))), op.Constant(value_ints=[1]), keepdims=0
    )  # from 1
    place = op.Add(op.Mul(image, op.Constant(value_int=keep)), op.Sub(rank, op.Constant(value_int=1)))
    empty = op.Expand(op.Constant(value_int=-1), op.Mul(number, most))
    return op.Reshape(op.ScatterElements(empty, place, box, axis=0), op.Concat(number, most, axis=0))


@torch.library.custom_op('pvt_mm::roi_align', mutates_args=())
def roi_align(maps: list[Tensor], rois: Tensor, levels: Tensor, scales: list[float], size: int, ratio: int) -> Tensor:
    """Returns the features (R, C, size, size) of regions, each from the map of its own level.

    Args:
        maps: L maps (B, C, H, W).
        rois: (R, 5): index of the image, x1, y1, x2, y2 in pixels of the image.
        levels: (R,), from 0 to L - 1.
        scales: Pixels of each map for a pixel of the image.
        size: Bins per side of a region.
        ratio: Samples per side of a bin, or 0 for one a pixel of the map.
    """
    from mmcv.ops import roi_align

    features = maps[0].new_zeros((len(rois), maps[0].shape[1], size, size))
    for i, (x, scale) in enumerate(zip(maps, scales, strict=True)):
        mine = levels == i
        features[mine] = roi_align(x, rois[mine], (size, size), scale, ratio, 'avg', True)
    return features


@roi_align.register_fake
def _(maps: list[Tensor], rois: Tensor, levels: Tensor, scales: list[float], size: int, ratio: int) -> Tensor:
    return maps[0].new_empty((rois.shape[0], maps[0].shape[1], size, size))


def _roi_align(maps: list, rois: Tensor, levels: Tensor, scales: list[float], size: int, ratio: int) -> Tensor:
    image = op.Cast(op.Gather(rois, op.Constant(value_int=0), axis=1), to=7)
    boxes = op.Gather(rois, op.Constant(value_ints=[1, 2, 3, 4]), axis=1)
    features, places = [], []
    for i, (x, scale) in enumerate(zip(maps, scales, strict=True)):
        mine = op.Reshape(op.NonZero(op.Equal(levels, op.Constant(value_int=i))), op.Constant(value_ints=[-1]))
        settings = dict(output_height=size, output_width=size, sampling_ratio=ratio, spatial_scale=scale, mode='avg')
        settings['coordinate_transformation_mode'] = 'half_pixel'
        features.append(op.RoiAlign(x, op.Gather(boxes, mine), op.Gather(image, mine), **settings))
        places.append(mine)
    place = op.Concat(*places, axis=0)
    number = op.Range(op.Constant(value_int=0), op.Size(place), op.Constant(value_int=1))
    return op.Gather(op.Concat(*features, axis=0), op.ScatterElements(place, place, number, axis=0))


@torch.library.custom_op('pvt_mm::paste', mutates_args=())
def paste(masks: Tensor, rows: Tensor, columns: Tensor, threshold: float) -> Tensor:
    """Returns where masks (N, h, w), interpolated by rows (N, H, h) and columns (N, W, w), reach a threshold.

    The result is bool (N, H, W). The exported operator computes a mask at a time: in floating point all of them take
    four times the memory.
    """
    return rows @ masks @ columns.mT >= threshold


@paste.register_fake
def _(masks: Tensor, rows: Tensor, columns: Tensor, threshold: float) -> Tensor:
    return masks.new_empty((masks.shape[0], rows.shape[1], columns.shape[1]), dtype=torch.bool)


def _paste(masks: Tensor, rows: Tensor, columns: Tensor, threshold: float) -> Tensor:
    return _paste_all(masks, rows, columns, op.Constant(value_float=threshold))


@script(default_opset=op)
def _paste_all(masks: FLOAT[...], rows: FLOAT[...], columns: FLOAT[...], threshold: FLOAT) -> BOOL[...]:
    @graph()
    def paste_one(mask: FLOAT[...], row: FLOAT[...], column: FLOAT[...]) -> BOOL[...]:
        return op.GreaterOrEqual(op.MatMul(op.MatMul(row, mask), op.Transpose(column, perm=[1, 0])), threshold)

    pasted = op.Scan(masks, rows, columns, body=paste_one, num_scan_inputs=3)
    return pasted


@torch.library.custom_op('pvt_mm::label_map', mutates_args=())
def label_map(
    scores: Tensor, tops: Tensor, bottoms: Tensor, heights: Tensor, lefts: Tensor, rights: Tensor, widths: Tensor
) -> Tensor:
    """Returns the best class (B, H, W) of scores that are interpolated, int64.

    The exported operator computes a row at a time: the scores of all classes of a photograph's pixels take gigabytes.

    Args:
        scores: (B, h, w, classes).
        tops: (H,), the upper of the two rows between which each row is interpolated.
        bottoms: (H,), the lower one.
        heights: (H,), its weight.
        lefts: (W,), the left one of two columns.
        rights: (W,), the right one.
        widths: (W,), its weight.
    """
    rows = torch.lerp(scores[:, tops], scores[:, bottoms], heights[:, None, None])
    return torch.lerp(rows[:, :, lefts], rows[:, :, rights], widths[:, None]).argmax(3)


@label_map.register_fake
def _(
    scores: Tensor, tops: Tensor, bottoms: Tensor, heights: Tensor, lefts: Tensor, rights: Tensor, widths: Tensor
) -> Tensor:
    return scores.new_empty((scores.shape[0], tops.shape[0], lefts.shape[0]), dtype=torch.int64)


@script(default_opset=op)
def _label_map(
    scores: FLOAT[...],
    tops: INT64[...],
    bottoms: INT64[...],
    heights: FLOAT[...],
    lefts: INT64[...],
    rights: INT64[...],
    widths: FLOAT[...],
) -> INT64[...]:
    right_weights = op.Unsqueeze(widths, op.Constant(value_ints=[1]))  # (W, 1)

    @graph()
    def label_row(top: INT64, bottom: INT64, height: FLOAT) -> INT64[...]:
        upper, lower = op.Gather(scores, top, axis=1), op.Gather(scores, bottom, axis=1)  # (B, w, classes)
        row = op.Add(upper, op.Mul(op.Sub(lower, upper), height))
        left, right = op.Gather(row, lefts, axis=1), op.Gather(row, rights, axis=1)  # (B, W, classes)
        return op.ArgMax(op.Add(left, op.Mul(op.Sub(right, left), right_weights)), axis=2, keepdims=0)

    rows = op.Scan(tops, bottoms, heights, body=label_row, num_scan_inputs=3)  # (H, B, W)
    return op.Transpose(rows, perm=[1, 0, 2])


def translations() -> dict[Callable, Callable]:
    """Returns the translations of these operators, as ``torch.onnx.export`` takes them."""
    ours = torch.ops.pvt_mm
    return {
        ours.nms.default: _nms,
        ours.roi_align.default: _roi_align,
        ours.paste.default: _paste,
        ours.label_map.default: _label_map,
    }
