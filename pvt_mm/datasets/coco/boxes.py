"""How the boxes of a COCO json are written."""

from collections.abc import Iterable, Iterator
from typing import Any

from pvt_mm.datasets.coco.masks import is_number

SLACK = 1.0  # pixels by which a box may exceed its image: COCO's boxes are rounded
CORNERS = 0.5  # the share of boxes that exceed their image from which on all are taken for [x1, y1, x2, y2]
MANY = 5  # fewer boxes are no evidence of how they are written

# A valid box with its annotation and the size (H, W) of its image.
Sized = tuple[list[float], dict, tuple[int, int]]


def exceeds(box: list[float], size: tuple[int, int]) -> bool:
    """Returns whether a box [x, y, width, height] exceeds an image of the size (H, W) by more than rounding."""
    x, y, w, h = box
    return min(x, y) < -SLACK or x + w > size[1] + SLACK or y + h > size[0] + SLACK


def are_fractions(boxes: Iterable[Sized]) -> bool:
    """Returns whether all boxes are of 0 to 1, fractions of the image."""
    found = [box for box, _, _ in boxes if any(box)]
    return len(found) >= MANY and all(0 <= value <= 1 for box in found for value in box)


def find_corners(boxes: Iterable[Sized]) -> bool | str:
    """Returns whether boxes are [x1, y1, x2, y2]; if it cannot be told, what is unclear, in one line.

    Polygons decide, else ``area``: they are of one of both. Without them all boxes must be corners within their image,
    and most exceed it as [x, y, width, height].
    """
    boxes = [one for one in boxes if any(one[0])]
    for votes in (list(_votes_of_masks(boxes)), list(_votes_of_areas(boxes))):
        if votes:
            return all(votes)
    if not boxes or any(_corner_fault(box, size) for box, _, size in boxes):
        return False
    outside = sum(exceeds(box, size) for box, _, size in boxes)
    if len(boxes) >= MANY and outside > CORNERS * len(boxes):
        return True
    return outside > 0 and (
        f'{outside} of {len(boxes)} boxes exceed their image as [x, y, width, height], and all may be [x1, y1, x2, y2]'
    )


def _corner_fault(box: list[float], size: tuple[int, int]) -> bool:
    x1, y1, x2, y2 = box
    return not (-SLACK <= x1 < x2 <= size[1] + SLACK and -SLACK <= y1 < y2 <= size[0] + SLACK)


def _votes_of_masks(boxes: list[Sized]) -> Iterator[bool]:
    """Yields whether boxes are corners of their polygons, for those that are the one or the other."""
    for box, annotation, _ in boxes:
        polygons = annotation.get('segmentation')
        if not isinstance(polygons, list) or not all(isinstance(one, list) and one for one in polygons):
            continue
        values = [value for polygon in polygons for value in polygon]
        if not values or not all(map(is_number, values)):
            continue
        xs, ys = ([value for polygon in polygons for value in polygon[axis::2]] for axis in (0, 1))
        left, top, right, bottom = min(xs), min(ys), max(xs, default=0), max(ys, default=0)
        yield from _vote(
            _differ(box, (left, top, right - left, bottom - top)), _differ(box, (left, top, right, bottom))
        )


def _differ(box: list[float], other: tuple[float, ...]) -> bool:
    return any(abs(a - b) > 2 * SLACK for a, b in zip(box, other, strict=True))


def _votes_of_areas(boxes: list[Sized]) -> Iterator[bool]:
    """Yields whether boxes are corners of a box of their ``area``, for those that are the one or the other."""
    for (x, y, w, h), annotation, _ in boxes:
        area: Any = annotation.get('area')
        if is_number(area, 1e12) and area > 0:
            yield from _vote(*(abs(area - one) > 0.01 * area for one in (w * h, (w - x) * (h - y))))


def _vote(not_sides: bool, not_corners: bool) -> Iterator[bool]:
    if not_sides != not_corners:
        yield not_sides
