"""Faults in folders of classes."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pvt_mm.datasets.faults import Fault
from pvt_mm.datasets.image_folder import EXTENSIONS, find_images
from pvt_mm.datasets.own_data.tree import SPLIT_OF
from pvt_mm.utils.text import shorten

MAX_COMPARED = 50_000  # images of a split that are compared with each other


def find_folder_faults(folder: str, classes: Sequence[str], is_list: bool = False) -> Iterator[Fault]:
    """Yields what is wrong with folders of classes, without reading whole images.

    Args:
        folder: The folder that has a folder for each class.
        classes: The names of the classes.
        is_list: Whether a list chooses the images and gives their classes.
    """
    if all(name.lower() in SPLIT_OF for name in classes):
        yield Fault('nested folders', _describe_nesting(folder, classes))
        return
    if len(classes) < 2:
        inner = [] if is_list else _folders(Path(folder, classes[0]))
        text = f'there is one class, {classes[0]}'
        if len(inner) > 1:
            listed = shorten(inner)
            hint = f'its folder has the folders {listed}: if they are the classes, let data_prefix end in it'
            yield Fault('nested folders', f'{text}: {hint}')
        else:
            yield Fault('one class', f'{text}: {folder} must have a folder for each class')
        return
    by_case = defaultdict(list)
    for name in classes:
        by_case[name.casefold()].append(name)
    for names in by_case.values():
        if len(names) > 1:
            text = f'the classes {" and ".join(names)} of {folder} differ in case only: if they are one, use one folder'
            yield Fault('classes that differ in case', text, is_warning=True)
    if is_list:
        return
    with ThreadPoolExecutor() as threads:
        has_images = threads.map(lambda name: any(find_images(os.path.join(folder, name))), classes)
        for name in [name for name, found in zip(classes, has_images, strict=True) if not found]:
            others = Counter(path.suffix for path in Path(folder, name).rglob('*.*') if path.is_file())
            there = f', but {shorten(f"{count} files that end in {suffix}" for suffix, count in others.items())}'
            text = f'there is no image of {name}: its folder in {folder} has none{there if others else ""}; fill or '
            yield Fault('class without images', f'{text}remove it')
    loose = sorted(path.name for path in Path(folder).iterdir() if path.suffix.lower() in EXTENSIONS)
    loose = [name for name in loose if not name.startswith('.')]
    if loose:
        text = f'{len(loose)} images in {folder}, such as {loose[0]}, are in the folder of no class and are left out'
        yield Fault('image left out', text, is_warning=True)


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.glob('*') if entry.is_dir())


def _describe_nesting(folder: str, classes: Sequence[str]) -> str:
    inner = sorted({inner for name in classes for inner in _folders(Path(folder, name))})
    below = f', and {shorten(inner)} below them' if inner else ''
    return (
        f'the classes of {folder} would be {shorten(classes)}{below}: these are splits; let data_prefix end in one of '
        f'them, as in {os.path.join(os.path.basename(folder.rstrip("/")), classes[0])}'
    )


def find_repeated_images(images: Sequence[dict]) -> Iterator[Fault]:
    """Yields the images that have two classes: files of the same content. More than MAX_COMPARED are not compared."""
    if len(images) > MAX_COMPARED:
        return
    with ThreadPoolExecutor() as threads:
        sizes = list(threads.map(lambda info: _size(info['img_path']), images))
    by_size = defaultdict(list)
    for size, info in zip(sizes, images, strict=True):
        by_size[size].append(info)
    for size, group in by_size.items():
        if not size or len({info['gt_label'] for info in group}) < 2:
            continue
        seen: dict[bytes, dict] = {}
        for info in group:
            digest = hashlib.blake2b(Path(info['img_path']).read_bytes()).digest()
            other = seen.setdefault(digest, info)
            if other['gt_label'] != info['gt_label']:
                text = f'{info["img_path"]} is the same image as {other["img_path"]}, of another class: remove one'
                yield Fault('image of two classes', text, is_warning=True)


def _size(path: str) -> int:
    """Returns the bytes of a file, 0 if it cannot be read."""
    try:
        return os.path.getsize(path)
    except OSError:
        return 0
