"""What is done about faults of data before a run starts."""

import logging
from collections.abc import Iterable

from mmengine.logging import print_log

from pvt_mm.datasets.faults import Fault
from pvt_mm.utils.errors import InputError


def report(faults: Iterable[Fault], split: str) -> bool:
    """Raises an InputError of the first fault, with the number of its kind; else warns, and returns whether it did."""
    by_kind: dict[tuple[bool, str], list[str]] = {}
    for fault in faults:
        by_kind.setdefault((fault.is_warning, fault.kind), []).append(fault.text)
    for (is_warning, _), texts in sorted(by_kind.items(), key=lambda one: one[0][0]):  # stable: in the order found
        more = f' (and {len(texts) - 1} more like it)' if len(texts) > 1 else ''
        line = f'the {split} data: {texts[0]}{more}'
        if not is_warning:
            raise InputError(line)
        warn(line)
    return bool(by_kind)


def warn(text: str) -> None:
    """Logs a warning."""
    print_log(text, 'current', logging.WARNING)
