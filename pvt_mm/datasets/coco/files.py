"""Finding images by names that another machine or program wrote."""

import contextlib
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from PIL import Image

from pvt_mm.datasets.image_io import EXTENSIONS, read_image

_TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height


class ImageFiles:
    """The images below a folder.

    Args:
        folder: The folder that the file names of annotations are relative to.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = os.fspath(folder)
        self._names: dict[str, set[str]] = {}  # of the files in a folder
        self._below: dict[str, list[str]] | None = None

    def exists(self, name: str) -> bool:
        """Returns whether the folder has a file of this relative name. Folders are listed once."""
        folder, base = os.path.split(os.path.join(self.folder, name))
        if folder not in self._names:
            self._names[folder] = set()
            with contextlib.suppress(OSError, ValueError), os.scandir(folder) as entries:
                self._names[folder] = {entry.name for entry in entries if entry.is_file()}
        return base in self._names[folder]

    def find(self, name: str) -> str | None:
        """Returns the relative name of the file that a name means, or None.

        The name may have backslashes, a drive, folders of another machine, a folder too many, URL quotes, or a suffix
        in another case. Last, the one file below the folder with this name, or with this stem, is taken.
        """
        if self.exists(name):
            return name
        spellings = list(_spellings(name))
        found = next(filter(self.exists, spellings), None)
        for key in (_key, _stem_key) if found is None else ():
            matches = {path for spelling in spellings for path in self._index().get(key(spelling), ())}
            if len(matches) == 1:
                return matches.pop()
        return found

    def _index(self) -> dict[str, list[str]]:
        if self._below is None:
            self._below = defaultdict(list)
            for folder, _, names in os.walk(self.folder, followlinks=True):
                for name in names:
                    if name.lower().endswith(EXTENSIONS):
                        path = os.path.relpath(os.path.join(folder, name), self.folder)
                        self._below[_key(name)].append(path)
                        self._below[_stem_key(name)].append(path)
        return self._below


def _spellings(name: str) -> Iterator[str]:
    """Yields what a file name may mean, with fewer and fewer folders."""
    slashed = name.replace('\\', '/')
    for spelling in dict.fromkeys((slashed, unquote(slashed), unquote(slashed).split('?d=')[-1].split('?')[0])):
        parts = [part for part in spelling.split('/') if part not in ('', '.', '..')]
        for i in range(len(parts)):
            yield '/'.join(parts[i:])


def _key(name: str) -> str:
    return unicodedata.normalize('NFC', name.rsplit('/', 1)[-1]).casefold()


def _stem_key(name: str) -> str:
    return os.path.splitext(_key(name))[0] + '/'  # which no file name contains


def upright_size(path: str | os.PathLike) -> tuple[int, int] | None:
    """Returns the (H, W) in pixels of an image as training reads it, turned upright; None if it cannot be read."""
    try:
        with Image.open(Path(path)) as image:
            W, H = image.size
            if image.getexif().get(0x0112) not in _TRANSPOSED:
                return H, W
            if image.format in ('JPEG', 'MPO'):
                return W, H
        H, W = read_image(path).shape[:2]  # OpenCV turns some other formats
        return H, W
    except Exception:  # decoders raise anything
        return None
