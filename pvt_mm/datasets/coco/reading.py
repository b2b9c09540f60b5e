"""Reading a COCO json."""

import codecs
import contextlib
import gc
import json
import os
from collections.abc import Iterator
from pathlib import Path

from pvt_mm.utils.errors import InputError

BYTE_ORDER_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keeps Python from looking through millions of new lists again and again, in the block."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def read_coco(path: str | os.PathLike) -> dict:
    """Returns the object in a json file, in UTF-8 or UTF-16, with or without a byte order mark.

    Raises:
        InputError: The file cannot be read, is empty, truncated or not json, or contains something else than an object.
    """
    try:
        with no_garbage_collection():
            content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f'{path} cannot be read: {error.strerror or error}') from None
    except (ValueError, RecursionError) as error:
        size = os.path.getsize(path)
        why = f'is not json: {error}' if size else 'is empty'
        raise InputError(f'{path} {why}; export the annotations again') from None
    if not isinstance(content, dict):
        raise InputError(
            f'{path} is not a COCO annotation file: it contains a {type(content).__name__}, not an object with '
            '"images", "annotations" and "categories"; export the annotations as COCO json'
        )
    return content


def encoding_fault(path: str | os.PathLike) -> str:
    """Returns why MMDetection cannot read a json that :func:`read_coco` reads, in one line; ``''`` if it can."""
    with open(path, 'rb') as file:
        start = file.read(4)
    if start.startswith(BYTE_ORDER_MARKS) or b'\0' in start:
        return 'it begins with a byte order mark, or is in UTF-16, which MMDetection cannot read'
    return ''
