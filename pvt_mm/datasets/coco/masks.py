"""Faults in COCO's masks."""

from typing import Any

from pycocotools import mask as coco_mask

MAX_COORDINATE = 1e6  # pixels; pycocotools corrupts memory from about 1e9 on
# Faults of polygons that MMDetection leaves out while training.
SHORT, OUTSIDE = 'a polygon is not a list of three or more x, y', 'the polygons lie outside of the image'


def is_number(value: Any, maximum: float = MAX_COORDINATE) -> bool:
    """Returns whether a value is a number of at most this magnitude, and not NaN."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= maximum


def mask_fault(mask: Any, size: tuple[int, int]) -> str:
    """Returns why a COCO mask, polygons or run lengths, does not decode to ``size`` (H, W); '' if it does.

    The run lengths are summed here, since pycocotools writes out of bounds if they are wrong.
    """
    H, W = size
    if isinstance(mask, list):
        faults = [_polygon_fault(polygon, size) for polygon in mask]
        # A part of an object may lie beyond the border.
        return next(
            (fault for fault in faults if fault and fault != OUTSIDE), OUTSIDE if all(faults) and faults else ''
        )
    if not isinstance(mask, dict) or 'counts' not in mask:
        return f'the mask is a {type(mask).__name__}, neither polygons nor run lengths'
    if mask.get('size') not in ([H, W], (H, W)):
        return f'the run lengths are for the size {mask.get("size")}, and the image is [{H}, {W}]'
    try:
        given = mask['counts']
        counts = given if isinstance(given, list) else decode_run_lengths(given)
        total = sum(counts)
    except (ValueError, TypeError, AttributeError) as error:
        return f'the run lengths do not decode: {error}'
    if min(counts, default=0) < 0 or total != H * W:
        return f'the run lengths are of {total} pixels, and the image has {H * W}'
    return ''


def _polygon_fault(polygon: Any, size: tuple[int, int]) -> str:
    H, W = size
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        return SHORT
    xs, ys = polygon[::2], polygon[1::2]
    try:  # by functions in C, since COCO has 25 million coordinates
        left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
        valid = abs(sum(polygon)) < MAX_COORDINATE**2 and min(left, top) >= -MAX_COORDINATE
        valid = valid and max(right, bottom) <= MAX_COORDINATE and bool not in set(map(type, polygon))
    except (TypeError, OverflowError):
        valid = False
    if not valid:
        return 'a coordinate of a polygon is not a number'
    if right <= 0 or bottom <= 0 or left >= W or top >= H:
        return OUTSIDE
    return ''


def decode_run_lengths(text: str | bytes) -> list[int]:
    """Decodes COCO's compressed run lengths: 5 bits per character, differences from the third count on.

    Raises:
        ValueError: A character is invalid, or the last count is truncated.
    """
    counts, value, shift = [], 0, 0
    for char in text.encode() if isinstance(text, str) else text:
        bits = char - 48
        if not 0 <= bits < 64:
            raise ValueError(f'the character {chr(char)!r} is invalid')
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << (shift - 4) if bits & 16 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError('they are truncated')
    return counts


def area_and_box(mask: list | dict, size: tuple[int, int]) -> tuple[float, list[float]]:
    """Returns area and box [x, y, width, height] in pixels of a mask of ``size`` (H, W) that has no fault."""
    if isinstance(mask, list):
        encoded = coco_mask.merge(coco_mask.frPyObjects(mask, *size))
    else:
        encoded = coco_mask.frPyObjects(mask, *size) if isinstance(mask['counts'], list) else mask
    return float(coco_mask.area(encoded)), coco_mask.toBbox(encoded).tolist()
