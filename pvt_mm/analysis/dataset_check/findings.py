"""What a check of a data set finds."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Fault(NamedTuple):
    """A fault: its kind, its split, and a line that says where and what it is."""

    kind: str
    split: str
    text: str


@dataclass
class Findings:
    """Faults and class counts of a split, or of one of its images."""

    name: str  # of the split: train, val, test, or 'val, test' if both read the same data
    faults: list[Fault] = field(default_factory=list)
    # Annotations (images, for label maps and folders) by class index; by None for categories that are not trained on.
    seen: Counter = field(default_factory=Counter)

    def add(self, kind: str, text: str) -> None:
        """Adds a fault."""
        self.faults.append(Fault(kind, self.name, ' '.join(text.split())))


@dataclass
class Item:
    """An image and its annotations."""

    path: str
    size: tuple[int, int] | None = None  # (H, W) in pixels according to the annotations
    seg_map: dict | None = None  # the input of MMSegmentation's LoadAnnotations
    label: int | None = None  # the class index of the whole image
    # Objects to draw: the class index, the annotation, and why training does not learn it, or ''.
    drawn: list[tuple[int, dict, str]] = field(default_factory=list)
    exists: bool = True  # False if its absence is among the faults already


@dataclass
class Split(Findings):
    """A data set of a config with its findings."""

    classes: list[str] = field(default_factory=list)  # that are trained on
    items: list[Item] = field(default_factory=list)
    load: Any = None  # the pipeline's transform that loads images
    channels: int | None = None  # of the images that the model takes
    maps: Any = None  # the label maps that were read, a LabelMaps
    remarks: list[str] = field(default_factory=list)  # that are not faults


def find_step(pipeline: Sequence[dict], name: str) -> dict | None:
    return next((step for step in pipeline if step['type'].split('.')[-1] == name), None)
