"""Finding images by names that another machine or program wrote."""

import contextlib
import functools
import itertools
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from PIL import Image

from pvt_mm.datasets.image_io import EXTENSIONS, Loader, read_image

_TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height


class ImageFiles:
    """The images below a folder.

    Args:
        folder: The folder that the file names of annotations are relative to.
        names: All file names of the annotations, which tell what the first folders of each mean.
    """

    def __init__(self, folder: str | os.PathLike, names: Iterable[Any] = ()):
        self.folder = os.fspath(folder)
        self._names = [_parts(name) for name in names if isinstance(name, str)]
        self._listed: dict[str, set[str]] = {}  # the files in a folder

    def exists(self, name: str) -> bool:
        """Returns whether the folder has a file of this relative name. Folders are listed once."""
        folder, base = os.path.split(os.path.join(self.folder, name))
        if folder not in self._listed:
            self._listed[folder] = set()
            with contextlib.suppress(OSError, ValueError), os.scandir(folder) as entries:
                self._listed[folder] = {entry.name for entry in entries if entry.is_file()}
        return base in self._listed[folder]

    def find(self, name: str) -> str | None:
        """Returns the relative name of the file that a name means, or None.

        Names may have backslashes, URL quotes, or first folders that are of another machine and the same in all names.
        Then the one file below the folder is taken whose path ends so, but for case and suffix, if no other name of
        the annotations may mean it.
        """
        if self.exists(name):
            return name
        parts = _parts(name)[self._dropped :]
        if not parts or self.exists('/'.join(parts)):
            return '/'.join(parts) or None
        for key_of in (_key, _stem):
            key, *folders = [key_of(parts[-1]), *map(_key, parts[-2::-1])]
            found = [
                path
                for path in self._below[key_of].get(key, ())
                if [_key(part) for part in path.split('/')[-2::-1]][: len(folders)] == folders
            ]
            if len(found) == 1 and (folders or self._given[key_of][key] < 2):
                return found[0]
        return None

    @functools.cached_property
    def _dropped(self) -> int:
        """The number of the first folders that all names share and that the folder does not have."""
        shared = 0
        if self._names:
            pairs = zip(min(self._names), max(self._names), strict=False)
            for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs):
                shared += 1
        shared = min([shared, *(len(parts) - 1 for parts in self._names)])
        found = [sum(self.exists('/'.join(parts[i:])) for parts in self._names) for i in range(shared + 1)]
        return found.index(max(found)) if any(found) else shared

    @functools.cached_property
    def _given(self) -> dict[Callable, Counter]:
        """How many names of the annotations have a file name, and a stem."""
        return {key: Counter(key(parts[-1]) for parts in set(self._names)) for key in (_key, _stem)}

    @functools.cached_property
    def _below(self) -> dict[Callable, dict[str, list[str]]]:
        """The images below the folder, by their file names and by their stems."""
        below: dict[Callable, dict[str, list[str]]] = {_key: defaultdict(list), _stem: defaultdict(list)}
        for folder, _, names in os.walk(self.folder, followlinks=True):
            for name in names:
                if name.lower().endswith(EXTENSIONS):
                    path = Path(os.path.relpath(os.path.join(folder, name), self.folder)).as_posix()
                    for key, found in below.items():
                        found[key(name)].append(path)
        return below


@functools.lru_cache(maxsize=2**20)
def _parts(name: str) -> tuple[str, ...]:
    """Returns the folders and the file name of a path or URL."""
    path = unquote(name.replace('\\', '/')).split('?d=')[-1].split('?')[0]
    return tuple(part for part in path.split('/') if part not in ('', '.', '..')) or ('',)


def _key(name: str) -> str:
    return unicodedata.normalize('NFC', name).casefold()


def _stem(name: str) -> str:
    return os.path.splitext(_key(name))[0]


def upright_size(path: str | os.PathLike, load: Loader | None = None) -> tuple[int, int] | None:
    """Returns the (H, W) in pixels of an image as ``load`` reads it, by default turned upright; None if it fails.

    Only of images that their EXIF orientation lays on their side are the pixels read, where the loader decides.
    """
    try:
        with Image.open(Path(path)) as image:
            W, H = image.size
            if image.getexif().get(0x0112) not in _TRANSPOSED:
                return H, W
            if load is None and image.format in ('JPEG', 'MPO'):
                return W, H
        H, W = read_image(path, load).shape[:2]
        return H, W
    except Exception:  # decoders raise anything
        return None
