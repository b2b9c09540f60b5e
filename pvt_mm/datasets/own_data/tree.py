"""The files of a folder, and the splits that their names say."""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from pvt_mm.datasets.image_io import EXTENSIONS
from pvt_mm.utils.errors import InputError

SPLITS = ('train', 'val', 'test')
_SPLIT_WORDS = {
    'train': 'train training trn',
    'val': 'val valid validation validate eval dev',
    'test': 'test testing tst',
}
SPLIT_OF = {word: split for split, words in _SPLIT_WORDS.items() for word in words.split()}
_RECORD = 'own_data.json'  # what training writes to the folder of corrected data
_IGNORED = ('__MACOSX', '__pycache__', '$RECYCLE.BIN', '@eaDir', 'work_dirs')


@dataclass(frozen=True)
class Tree:
    """The files of a folder and its subfolders: ``files`` are relative paths, sorted; hidden ones are left out."""

    root: Path
    files: tuple[PurePosixPath, ...]

    @cached_property
    def images(self) -> tuple[PurePosixPath, ...]:
        """The files with an image's suffix."""
        return tuple(file for file in self.files if file.name.lower().endswith(EXTENSIONS))

    @cached_property
    def folders(self) -> tuple[PurePosixPath, ...]:
        """The folders of all files, parents first."""
        parents = {file.parent for file in self.files}
        return tuple(sorted({folder for parent in parents for folder in (parent, *parent.parents)}))

    def ending(self, *suffixes: str) -> list[PurePosixPath]:
        """Returns the files whose name ends with one of the suffixes, in any case."""
        return [file for file in self.files if file.name.lower().endswith(suffixes)]

    def below(self, folder: PurePosixPath) -> 'Tree':
        """Returns the part below a folder, given by its path in this one."""
        files = (file.relative_to(folder) for file in self.files if file.is_relative_to(folder))
        return Tree(self.root / folder, tuple(files))


def read_tree(root: str | os.PathLike, without: Path | None = None) -> Tree:
    """Lists a folder, following links; hidden files and folders are left out, as is the folder ``without``.

    Raises:
        InputError: ``root`` is not a folder that can be read.
    """
    root = Path(os.path.abspath(root))
    seen = (os.path.realpath(root), *([os.path.realpath(without)] if without else []))
    return Tree(root, tuple(PurePosixPath(path) for path in sorted(_walk(root, '', seen))))


def _walk(folder: Path, prefix: str, seen: tuple[str, ...]) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if not entry.name.startswith('.') and entry.name not in _IGNORED]
    except OSError as error:
        raise InputError(f'{folder} cannot be read: {error.strerror}') from None
    if _RECORD in (entry.name for entry in found):
        return
    for entry in found:
        if not entry.is_dir():
            yield prefix + entry.name
        elif (real := os.path.realpath(entry.path)) not in seen:  # a link to a folder above it
            yield from _walk(Path(entry.path), f'{prefix}{entry.name}/', (*seen, real))


def common_folder(files: Iterable[PurePosixPath]) -> PurePosixPath:
    """Returns the folder that all files are in or below."""
    return PurePosixPath(os.path.commonpath([file.parent for file in files] or ['']))


def split_of(name: str) -> str | None:
    """Returns the split that a file's or folder's name says, or None: 'train' for ``instances_train2017``."""
    words = re.findall('[a-z]+', re.sub('annot$', '', name.lower()))  # CamVid's trainannot
    found = {SPLIT_OF[word] for word in words if word in SPLIT_OF}
    return found.pop() if len(found) == 1 else None


def split_of_path(path: PurePosixPath) -> str | None:
    """Returns the split that a path says: its file's name, or the folder nearest to it."""
    return next((split for part in (path.stem, *reversed(path.parts[:-1])) if (split := split_of(part))), None)


def read_lines(path: Path) -> list[str]:
    """Returns the lines of a text file that are not empty.

    Raises:
        InputError: It cannot be read.
    """
    try:
        lines = path.read_text(encoding='utf-8-sig').splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f'{path} cannot be read: {error}') from None
    return [line.strip() for line in lines if line.strip()]
