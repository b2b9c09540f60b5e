"""Faults in COCO's masks."""

from typing import Any

MAX_COORDINATE = 1e6  # pixels; pycocotools corrupts memory from about 1e9 on


def is_number(value: Any, maximum: float = MAX_COORDINATE) -> bool:
    """Returns whether a value is a number of at most this magnitude, and not NaN."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= maximum


def mask_fault(mask: Any, size: tuple[int, int]) -> str:
    """Returns why a COCO mask, polygons or run lengths, does not decode to ``size`` (H, W); '' if it does.

    The run lengths are summed here, since pycocotools writes out of bounds if they are wrong.
    """
    if isinstance(mask, list):
        return next(filter(None, (_polygon_fault(polygon, size) for polygon in mask)), '')
    H, W = size
    if not isinstance(mask, dict) or 'counts' not in mask:
        return f'the mask is a {type(mask).__name__}, neither polygons nor run lengths'
    if mask.get('size') not in ([H, W], (H, W)):
        return f'the run lengths are for the size {mask.get("size")}, and the image is [{H}, {W}]'
    try:
        counts = run_lengths(mask)
        total = sum(counts)
    except (ValueError, TypeError, AttributeError) as error:
        return f'the run lengths do not decode: {error}'
    if min(counts, default=0) < 0 or total != H * W:
        return f'the run lengths are of {total} pixels, and the image has {H * W}'
    return ''


def _polygon_fault(polygon: Any, size: tuple[int, int]) -> str:
    H, W = size
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        return 'a polygon is not a list of three or more x, y'
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
        return f'a polygon lies outside the image of {W} x {H} pixels'
    return ''


def run_lengths(mask: dict) -> list[int]:
    """Returns the run lengths of a COCO mask, column by column, the first one of background."""
    return mask['counts'] if isinstance(mask['counts'], list) else decode_run_lengths(mask['counts'])


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


def mask_area(mask: list | dict) -> float:
    """Returns the area in pixels of a mask without a fault; that of overlapping polygons counts twice."""
    if isinstance(mask, dict):
        return float(sum(run_lengths(mask)[1::2]))
    return sum(_polygon_area(polygon) for polygon in mask)


def _polygon_area(polygon: list[float]) -> float:
    xs, ys = polygon[::2], polygon[1::2]
    return abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2


def mask_box(mask: list | dict, size: tuple[int, int]) -> list[float] | None:
    """Returns the box [x, y, width, height] in pixels of a mask without a fault of ``size`` (H, W); None if empty."""
    if isinstance(mask, list):
        xs, ys = ([value for polygon in mask for value in polygon[axis::2]] for axis in (0, 1))
        return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)] if mask else None
    start, columns, rows = 0, set(), set()
    for i, length in enumerate(run_lengths(mask)):
        if i % 2 and length:
            (first, top), (last, bottom) = divmod(start, size[0]), divmod(start + length - 1, size[0])
            columns |= {first, last}
            rows |= {top, bottom} if first == last else {0, size[0] - 1}
        start += length
    if not columns:
        return None
    return [min(columns), min(rows), max(columns) - min(columns) + 1, max(rows) - min(rows) + 1]
