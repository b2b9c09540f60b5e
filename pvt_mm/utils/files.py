"""Files that are there whole or not at all."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a path beside ``path`` to write to, which replaces ``path`` at the end; a block that fails leaves neither.

    What is there at the end is there after a power cut: it is on disk before it has the name, and then so is the name.

    Raises:
        OSError: The file or its folder, made if need be, cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        yield beside
        _flush(beside)
        os.replace(beside, path)
        with contextlib.suppress(OSError):  # some network file systems flush no folder
            _flush(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict:
    """Returns the object in a file; an empty one where there is no such file."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}


def write_json(path: Path, values: dict) -> None:
    """Writes an object to a file, whole or not at all."""
    with atomic_write(path) as beside:
        beside.write_text(json.dumps(values, indent=2) + '\n')
