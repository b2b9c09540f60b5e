"""What checks of data find."""

from typing import NamedTuple


class Fault(NamedTuple):
    """A fault: its kind, and a line that says where and what it is, and what to do."""

    kind: str
    text: str
    is_warning: bool = False  # whether one can train all the same
