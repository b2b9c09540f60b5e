"""What was checked before, so that it is checked only once."""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


class Remembered:
    """Remembers files that passed a check, by their paths, sizes and times of change, in the user's cache folder.

    That is ``$XDG_CACHE_HOME/pvt_mm``, or ``~/.cache/pvt_mm``; if it cannot be written, nothing is remembered. Nor are
    files that are not on this machine's disks.

    Args:
        what: What was checked, such as ``'labels'``: part of a file name in the cache.
        data_root: The folder of the data set, which has a file of its own in the cache.
        files: The files, or folders, that were checked.
        settings: What else the outcome depends on; its ``repr`` is compared.
    """

    def __init__(self, what: str, data_root: str, files: Sequence[str], settings: object):
        cache = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
        root = hashlib.sha256(os.fsencode(os.path.abspath(data_root))).hexdigest()[:16]
        self.file = Path(cache, 'pvt_mm', f'checked_{what}_{root}')
        digest = hashlib.sha256(repr(settings).encode(errors='surrogateescape'))
        try:
            with ThreadPoolExecutor() as threads:
                for file, state in zip(files, threads.map(os.stat, files), strict=True):
                    seen = (os.path.abspath(file), state.st_size, state.st_mtime_ns)
                    digest.update(repr(seen).encode(errors='surrogateescape'))
            self.digest = digest.hexdigest() if os.path.isabs(cache) else None
        except OSError:
            self.digest = None

    def has_passed(self) -> bool:
        """Returns whether they passed the check before."""
        with contextlib.suppress(OSError, ValueError):
            return self.digest in self.file.read_text().split()
        return False

    def record(self) -> None:
        """Records that they passed."""
        if self.digest is None:
            return
        with contextlib.suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with open(self.file, 'a') as records:
                records.write(f'{self.digest}\n')
