"""Text of messages."""

from collections.abc import Iterable


def shorten(names: Iterable, limit: int = 5) -> str:
    """Lists names in one short line: ``'a, b, c, d, e and 4 more'``; each is cut after 200 characters."""
    lines = [' '.join(str(name).split())[:200] for name in names]
    more = f' and {len(lines) - limit} more' if len(lines) > limit else ''
    return ', '.join(lines[:limit]) + more
