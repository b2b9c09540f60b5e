"""COCO json files, in the layouts of COCO, Roboflow, CVAT and Label Studio, or on their own."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from pvt_mm.datasets.coco import encoding_fault, read_coco, repair
from pvt_mm.datasets.coco.faults import same_name
from pvt_mm.datasets.coco.files import ImageFiles
from pvt_mm.datasets.own_data.data import OwnData, differing, in_both, summary
from pvt_mm.datasets.own_data.others import read_other
from pvt_mm.datasets.own_data.splitting import choose_val
from pvt_mm.datasets.own_data.tree import SPLITS, Tree, split_of, split_of_path
from pvt_mm.utils.errors import InputError
from pvt_mm.utils.files import atomic_write
from pvt_mm.utils.text import shorten

_FEW_MISSING = 0.1  # the share of the images, or label maps, that may be missing
_NOT_INSTANCES = ('captions', 'keypoints', 'stuff', 'panoptic', 'info', 'createml')
_MANY = 50  # jsons of one split, of which only the first are read


@dataclass(frozen=True)
class _Json:
    path: Path
    content: dict
    folder: Path  # of its images


def read_jsons(paths: Sequence[str], out: Path, seed: int, masks: bool = False) -> OwnData:
    """Returns the data of json files, each or all followed by the folder of their images; see find_data."""
    return _read(_given_jsons(paths), out, seed, masks)


def _given_jsons(paths: Sequence[str]) -> dict[str | None, _Json]:
    """Returns the json files of the command line by split; None is one that is to be split."""
    given: list[list] = []
    for path in paths:
        if not os.path.isdir(path):
            if not path.lower().endswith('.json'):
                raise InputError(f'{path} is neither a folder nor a json file: unpack it, or export COCO json')
            given.append([Path(os.path.abspath(path)), None])
        elif not given or given[-1][1]:
            raise InputError(f'{path} is a folder that follows no json file: give each json, then its images')
        else:
            for pair in given:
                pair[1] = pair[1] or Path(os.path.abspath(path))
    if len(given) > len(SPLITS):
        raise InputError(f'{len(given)} json files are given: give those of train, val and perhaps test')
    said = [split_of_path(PurePosixPath(path.parent.name, path.name)) for path, _ in given]
    splits = said if {'train', 'val'} <= {*said} and len({*said}) == len(given) else SPLITS
    found = {}
    for (path, folder), split in zip(given, [None] if len(given) == 1 else splits, strict=False):
        content = read_coco(path)
        found[split] = _Json(path, content, _images_folder(path, content, split or split_of(path.stem), None, folder))
    return found


def find_jsons(tree: Tree) -> dict[str | None, tuple[PurePosixPath, dict]]:
    """Returns the COCO json of each split in a folder, and what it contains; None is one that is to be split."""
    by_split: dict[str | None, list[PurePosixPath]] = {split: [] for split in (*SPLITS, None)}
    for path in tree.ending('.json'):
        by_split[split_of_path(path)].append(path)
    found: dict[str | None, tuple[PurePosixPath, dict]] = {}
    for split, paths in by_split.items():
        if split is None and 'train' in found:
            continue
        usual = [path for path in paths if 'instances' in path.name.lower() or path.name == '_annotations.coco.json']
        paths = usual or [path for path in paths if not any(word in path.name.lower() for word in _NOT_INSTANCES)]
        several = []
        for path in paths[:_MANY]:
            content = read_other(tree.root / path)
            if content is None or (path in usual and not isinstance(content, dict)):
                content = read_coco(tree.root / path)  # says what is wrong
            if isinstance(content, dict) and 'images' in content:
                several.append((path, content))
        if len(several) > 1:
            names = shorten(path for path, _ in several)
            raise InputError(
                f'{tree.root} contains {len(several)} COCO json files for {split or "training"} ({names}): give the '
                'files to use, --data TRAIN.json VAL.json'
            )
        if several:
            found[split] = several[0]
    if found and not {'train', None} & found.keys():
        path = next(iter(found.values()))[0]
        raise InputError(f'{tree.root} contains {path}, and no COCO json to train on; give its path to split it')
    return found


def read(tree: Tree, out: Path, seed: int, masks: bool = False) -> OwnData | None:
    found = find_jsons(tree)
    if not found:
        return None
    jsons = {}
    for split, (relative, content) in found.items():
        path = tree.root / relative
        jsons[split] = _Json(path, content, _images_folder(path, content, split, tree.root, None))
    return _read(jsons, out, seed, masks)


def _images_folder(path: Path, content: dict, split: str | None, root: Path | None, given: Path | None) -> Path:
    """Returns the folder that has the images of a json: ``given``, or one of those where tools put them.

    Raises:
        InputError: Most images are not there.
    """
    images = content.get('images')
    names = [one.get('file_name') for one in images if isinstance(one, dict)] if isinstance(images, list) else []
    names = [name for name in names if isinstance(name, str)]
    if not names:
        return given or path.parent  # the json's repair says what is wrong
    sample = names[:: max(1, len(names) // 50)]
    bases = list(_bases(path, split, root, given))
    best: tuple[int, Path | None] = (0, None)
    for look_below in (False, True):
        for base in bases:
            files = ImageFiles(base, names)
            hits = sum(_is_there(base, name) or (look_below and files.find(name) is not None) for name in sample)
            if hits > best[0]:
                best = (hits, base)
        if best[0] > len(sample) / 2:
            break
    if best[1] is None or best[0] <= len(sample) / 2:
        raise InputError(
            f'the images of {path} were not found, such as {names[0]}: looked in {shorten(bases)}; put them there, or '
            'give their folder after the json: --data JSON FOLDER'
        )
    _check_missing(path, names, best[1])
    return best[1]


def _is_there(folder: Path, name: str) -> bool:
    """Returns whether a folder has an image by its name, as it is or after the last slash."""
    name = name.replace('\\', '/')
    return any(
        os.path.isfile(folder / path)
        for spelling in (name, unquote(name))
        for path in (spelling, spelling.rsplit('/', 1)[-1])
        if path and not path.startswith('/')
    )


def _bases(path: Path, split: str | None, root: Path | None, given: Path | None) -> Iterator[Path]:
    """Yields the folders where the images of a json may be, those with the name of its split, or of none, first."""
    parents = [path.parent] if path.parent == root else [path.parent, path.parent.parent]
    if given:
        parents = [given]
    named = ('images', 'JPEGImages', 'imgs', 'img')
    places = [place for parent in parents for place in (parent, *(parent / name for name in named)) if place.is_dir()]
    found: dict[Path, None] = {}
    for place in places:
        if split or place.name in named:
            with os.scandir(place) as entries:
                names = sorted(one.name for one in entries if split_of(one.name) == split and one.is_dir())
            found |= dict.fromkeys(place / name for name in names)
    is_apart = not re.search(r'\b(ann|label|json)', path.parent.name.lower().replace('_', ' '))
    found |= dict.fromkeys(place for place in places if root or given or not is_apart or place != path.parent.parent)
    found |= dict.fromkeys([root] if root and not given else [])
    yield from found


def _check_missing(path: Path, names: list[str], folder: Path) -> None:
    """Raises an InputError if many images are missing, or if several names mean the same file."""
    files = ImageFiles(folder, names)
    by_file: dict[str, str] = {}
    missing = []
    for name in names:
        file = files.find(name)
        if file is None:
            missing.append(name)
            continue
        other = by_file.setdefault(file, name)
        if not (other.endswith(name) or name.endswith(other)):
            raise InputError(
                f'{path}: the images {other} and {name} would both be {folder / file}: keep them in folders, as the '
                'json names them'
            )
    if len(missing) > max(3, _FEW_MISSING * len(names)):
        raise InputError(
            f'{path}: {len(missing)} of its {len(names)} images are not in {folder} ({shorten(missing, 3)}): put them '
            'there, or remove them from the json'
        )


def _read(jsons: dict[str | None, _Json], out: Path, seed: int, masks: bool) -> OwnData:
    train = jsons.pop(None) if None in jsons else jsons['train']
    jsons = {'train': train, **{split: jsons[split] for split in SPLITS[1:] if split in jsons}}
    notes: list[str] = []
    contents: dict[str, dict] = {}
    unchanged: set[str] = set()
    classes: tuple[str, ...] = ()
    for split, one in jsons.items():
        if split == 'test' and not one.content.get('annotations'):
            notes.append(f'{one.path} has no annotations: it is left out; tools/demo.py predicts its images')
            continue
        content = _without_unused(one.content, classes) if classes else one.content
        try:
            contents[split], lines = repair(content, one.folder, classes or None, masks=masks)
        except InputError as error:
            raise InputError(f'{one.path}: {error}') from None
        classes = classes or tuple(category['name'] for category in contents[split]['categories'])
        if fault := encoding_fault(one.path):
            lines = [*lines, f'{fault}: written in UTF-8']
        notes += [f'{one.path.name} ({split}): {line}' for line in lines]
        if not lines and contents[split] == one.content:
            unchanged.add(split)
    if 'val' not in contents:
        parts, how = _split_coco(train, contents['train'], seed)
        contents = {**parts, **{split: contents[split] for split in contents if split != 'train'}}
        jsons = {split: jsons.get(split, train) for split in contents}
        unchanged -= {*parts}
        notes.insert(0, f'no validation split: {train.path} was split {how}, see {out}')
    notes += _compare(contents, {split: jsons[split].folder for split in contents}, classes)
    splits = {}
    for split in [split for split in SPLITS if split in contents]:
        ann_file = jsons[split].path if split in unchanged else out / f'{split}.json'
        if split not in unchanged:
            with atomic_write(ann_file) as temporary:
                temporary.write_text(json.dumps(contents[split]))
        splits[split] = dict(ann_file=str(ann_file), data_prefix=dict(img=f'{jsons[split].folder}/'))
    counts = {split: len(contents[split]['images']) for split in splits}
    objects = [one for split in splits for one in contents[split]['annotations'] if not one['iscrowd']]
    with_mask = sum(bool(one.get('segmentation')) for one in objects)
    if 0 < with_mask < len(objects):
        notes.append(f'{len(objects) - with_mask} of {len(objects)} objects have no mask')
    notes.insert(0, f'COCO json{_tool(train)}: {summary(counts, classes)}')
    return OwnData('coco', classes, splits, counts, has_masks=with_mask == len(objects) > 0, notes=notes)


def _without_unused(content: dict, classes: Sequence[str]) -> dict:
    """Returns annotations without the categories that are not among the classes and have no objects."""
    entries = [content.get('annotations'), content.get('categories')]
    if not all(isinstance(entry, list) and all(isinstance(one, dict) for one in entry) for entry in entries):
        return content  # its repair says what is wrong
    used = {str(one.get('category_id')) for one in entries[0]}
    known = {*map(same_name, classes)}
    kept = [one for one in entries[1] if str(one.get('id')) in used or same_name(str(one.get('name'))) in known]
    return {**content, 'categories': kept}


def _split_coco(one: _Json, content: dict, seed: int) -> tuple[dict[str, dict], str]:
    """Returns the parts to train on and to validate, and perhaps to test; and how they were chosen."""
    found: dict[int, set[int]] = {image['id']: set() for image in content['images']}
    for annotation in content['annotations']:
        found[annotation['image_id']].add(annotation['category_id'])
    names = {image['file_name']: found[image['id']] for image in content['images']}
    said = {name: split_of_path(PurePosixPath(name).parent / '_') for name in names}
    how = 'by the folders of its images'
    if None in said.values() or not {'train', 'val'} <= {*said.values()}:
        how = f'by the seed {seed}'
        val = choose_val(names, seed)
        said = {name: 'val' if name in val else 'train' for name in names}
    if not any(names[name] for name in names if said[name] == 'val'):
        raise InputError(f'{one.path} is too small to split ({len(names)} images): give a json to validate as well')
    parts = {}
    for split in [split for split in SPLITS if split in said.values()]:
        images = [image for image in content['images'] if said[image['file_name']] == split]
        ids = {image['id'] for image in images}
        annotations = [annotation for annotation in content['annotations'] if annotation['image_id'] in ids]
        parts[split] = {**content, 'images': images, 'annotations': annotations}
    return parts, how


def _compare(contents: dict[str, dict], folders: dict[str, Path], classes: Sequence[str]) -> list[str]:
    """Returns lines on what differs between train and val, and on images that are in both."""
    names = {
        split: Counter(
            category['name']
            for category in contents[split]['categories']
            for annotation in contents[split]['annotations']
            if annotation['category_id'] == category['id']
        )
        for split in ('train', 'val')
    }
    lines = differing({split: {*names[split]} for split in names}, classes, 'objects')
    files = [
        {str(folders[split] / image['file_name']) for image in contents[split]['images']} for split in ('train', 'val')
    ]
    return lines + in_both(*files)


def _tool(one: _Json) -> str:
    info = one.content.get('info')
    contributor = info.get('contributor') if isinstance(info, dict) else None
    if one.path.name == '_annotations.coco.json':
        return ' of Roboflow'
    if contributor == 'Label Studio':
        return ' of Label Studio'
    return ''
