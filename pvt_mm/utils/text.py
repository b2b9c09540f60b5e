"""Text of messages, and JSON."""

import json
import math
from collections.abc import Iterable
from typing import Any


def shorten(names: Iterable, limit: int = 5) -> str:
    """Lists names in one short line: ``'a, b, c, d, e and 4 more'``; each is cut after 200 characters."""
    lines = [' '.join(str(name).split())[:200] for name in names]
    more = f' and {len(lines) - limit} more' if len(lines) > limit else ''
    return ', '.join(lines[:limit]) + more


def plural(number: int, noun: str) -> str:
    """Returns ``'1 step'`` or ``'2 steps'``."""
    return f'{number} {noun}{"s" * (number != 1)}'


def json_text(value: Any, indent: int | None = None) -> str:
    """Returns JSON of plain values, tensors and arrays; NaN and infinity, which JSON does not have, become null."""
    return json.dumps(_plain(value), allow_nan=False, indent=indent)


def _plain(value: Any) -> Any:
    if hasattr(value, 'tolist'):  # of NumPy and PyTorch
        value = value.tolist()
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
