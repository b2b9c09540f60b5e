"""Faults in which files MMSegmentation's data sets list: images that are left out, or have no label map."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from pvt_mm.datasets.faults import Fault
from pvt_mm.datasets.image_io import EXTENSIONS
from pvt_mm.utils.text import shorten


def find_file_faults(dataset: Any, infos: Sequence[dict], has_maps: bool = True) -> Iterator[Fault]:
    """Yields the faults in what a data set lists.

    Args:
        dataset: A ``BaseSegDataset``, whose paths are local ones.
        infos: What its ``load_data_list`` returns.
        has_maps: Whether label maps are read.
    """
    folder, maps = dataset.data_prefix.get('img_path'), has_maps and dataset.data_prefix.get('seg_map_path')
    if not folder or '://' in folder or not os.path.isdir(folder):
        return
    is_list = os.path.isfile(dataset.ann_file)
    if is_list:
        yield from _list_faults(dataset, infos)
    else:
        yield from _left_out(dataset, infos, folder, maps)
    if maps and infos and os.path.isdir(maps):
        yield from _map_faults(dataset, infos, maps, is_list)


def _list_faults(dataset: Any, infos: Sequence[dict]) -> Iterator[Fault]:
    if not infos:
        yield Fault('no image', f'{dataset.ann_file} lists no image')
    missing = [i for i, info in enumerate(infos) if not os.path.isfile(info['img_path'])]
    for i in missing[:1]:
        path = infos[i]['img_path']
        where = f'line {i + 1} of {dataset.ann_file}' + (f' and {len(missing) - 1} more' if len(missing) > 1 else '')
        hint = f'list images without their suffix, to which img_suffix ({dataset.img_suffix}) is added'
        if not os.path.isfile(path.removesuffix(dataset.img_suffix)):
            hint = (
                _suggest('img_suffix', path.removesuffix(dataset.img_suffix), dataset.img_suffix) or 'correct the list'
            )
        yield Fault('missing image', f'the image {path} ({where}) does not exist: {hint}')


def _left_out(dataset: Any, infos: Sequence[dict], folder: str, maps: str | None) -> Iterator[Fault]:
    suffix, listed = dataset.img_suffix, {os.path.normpath(info['img_path']) for info in infos}
    images = sorted(path for path in _files(folder) if path.lower().endswith(EXTENSIONS))
    if not infos:
        suffixes = Counter(os.path.splitext(path)[1] for path in images).most_common()
        if not images:
            yield Fault('no image', f'{folder} has no image')
        else:
            found = shorten(f'{count} that end in {other}' for other, count in suffixes)
            text = f'{folder} has no image that ends in {suffix} (img_suffix), but {found}: set '
            yield Fault('no image', f"{text}img_suffix='{suffixes[0][0]}'")
        return
    stems = {path.removesuffix(suffix) for path in listed}
    label_maps = {os.path.normpath(info['seg_map_path']) for info in infos if 'seg_map_path' in info}
    others = []
    for path in images:
        stem = os.path.splitext(path)[0]
        if path in listed or path in label_maps or stem in stems:
            continue
        label_map = maps and os.path.normpath(
            os.path.join(maps, os.path.relpath(stem, folder) + dataset.seg_map_suffix)
        )
        if label_map and label_map != path and os.path.isfile(label_map):
            others.append(path)
    if others:
        suffixes = shorten(sorted({os.path.splitext(path)[1] for path in others}))
        text = f'{len(others)} images with label maps, such as {others[0]}, end in {suffixes} and would be left out'
        hint = f'rename them to {suffix} (img_suffix), or add a data set with their img_suffix by ConcatDataset'
        yield Fault('image left out', f'{text}: {hint}')


def _map_faults(dataset: Any, infos: Sequence[dict], maps: str, is_list: bool) -> Iterator[Fault]:
    suffix, there = dataset.seg_map_suffix, {os.path.normpath(path) for path in _files(maps)}
    wanted = {os.path.normpath(info['seg_map_path']): info['img_path'] for info in infos}
    missing = sorted(wanted.keys() - there)
    if missing:
        more = f', and {len(missing) - 1} more of the {len(wanted)} images have none' if len(missing) > 1 else ''
        hint = (
            _suggest('seg_map_suffix', missing[0].removesuffix(suffix), suffix) or 'restore them, or remove the images'
        )
        text = f'{missing[0]} of the image {wanted[missing[0]]} does not exist{more}: {hint}'
        yield Fault('missing label map', text)
    if is_list:  # the others are of another split
        return
    for path in sorted(there - wanted.keys()):
        image = os.path.join(dataset.data_prefix['img_path'], os.path.relpath(path, maps).removesuffix(suffix))
        if path.endswith(suffix) and not any(path == os.path.normpath(info['img_path']) for info in infos):
            text = f'{image}{dataset.img_suffix} of the label map {path} does not exist'
            yield Fault('missing image', text, is_warning=True)


def _suggest(setting: str, stem: str, suffix: str) -> str:
    """Returns what to set a suffix to so that a file with this stem is found, or ''."""
    folder, name = os.path.split(stem)
    if not name or not os.path.isdir(folder):
        return ''
    found = [other[len(name) :] for other in sorted(os.listdir(folder)) if other.startswith(name)]
    found = [other for other in found if other.lower().endswith(EXTENSIONS) and not other[0].isalnum()]
    return f"the file's name ends in {found[0]}: set {setting}='{found[0]}'" if found else ''


def _files(folder: str) -> Iterator[str]:
    """Yields the normalized paths of the files below a folder, except hidden ones."""
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith('.')]
        yield from (os.path.normpath(os.path.join(parent, name)) for name in names if not name.startswith('.'))
