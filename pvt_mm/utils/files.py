"""Atomic writing of files, and reading and writing of JSON."""

import contextlib
import errno
import json
import os
import platform
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pvt_mm.utils.text import json_text


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Writes a file atomically: yields a temporary path in the same folder, which is renamed to ``path`` at the end.

    If the block raises, the temporary file is removed and ``path`` stays as it was. The file and then its name are
    flushed to disk, so that ``path`` survives a power cut. Compute first, and write inside of the block: a process that
    is killed in it leaves the temporary file (``.<name>.<machine>.<process id>.<random>.tmp``).

    Raises:
        OSError: The file cannot be written, or its folder, created if missing; it names ``path``.
    """
    path = Path(path)
    # Containers on several machines that share a folder have the same process ids, and may have the same names.
    writer = f'{platform.node()[:32]}.{os.getpid()}.{secrets.token_hex(4)}'
    temporary = path.with_name(f'.{path.name}.{writer}.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        with contextlib.suppress(OSError):  # some network file systems cannot flush a folder
            _flush(path.parent)
    except OSError as error:
        if error.errno and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(OSError):  # a name that is too long cannot be removed either
            temporary.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike) -> None:
    """Raises an OSError if a file cannot be written, before a long computation of its content."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, 'Is a directory', str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent):
        pass


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict:
    """Returns the object in a file, or an empty one if the file does not exist."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}


def write_json(path: Path, values: dict) -> None:
    """Writes an object to a file, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json_text(values, indent=2) + '\n')
