"""Images in one folder per class, as in ImageNet and torchvision's ``ImageFolder``, or in a list with their classes."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from mmengine.dataset import BaseDataset

from pvt_mm.datasets.image_io import EXTENSIONS, find_fault, loader_of, unreadable_error
from pvt_mm.registry import DATASETS
from pvt_mm.utils.errors import InputError
from pvt_mm.utils.text import shorten

_NO_CLASSES = ('__MACOSX', '__pycache__', '@eaDir')  # folders that archives, programs and disks leave behind


def find_classes(folder: str, names: Sequence[str] | None = None) -> tuple[str, ...]:
    """Returns ``names``, each of which must have a folder in ``folder``, or by default those of its folders, sorted."""
    there = {entry.name for entry in _scan(folder) if entry.is_dir()}
    if not there:
        raise InputError(f'{folder} contains no folder: it must have one for each class, with its images')
    missing = [name for name in names or () if name not in there]
    if missing:
        raise InputError(
            f'{folder} has no folder {shorten(missing)}: each of metainfo.classes must have one; without '
            'metainfo.classes the folders are the classes'
        )
    return tuple(names or sorted(there))


def read_list(ann_file: str, folder: str, classes: Sequence[str]) -> list[dict]:
    """Returns a dict of ``img_path`` and ``gt_label`` for each line ``relative/path class_index`` of a list.

    Args:
        ann_file: The list, UTF-8. Empty lines are skipped.
        folder: The folder that the paths are relative to.
        classes: The names of the classes in the order of their indices.

    Raises:
        InputError: The list cannot be read or is empty, or a line has no index or that of no class, names an image that
            does not exist, contradicts another line, or the folder of the image, which has the name of another class.
    """
    try:
        with open(ann_file, encoding='utf-8-sig') as file:
            lines = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f'the list of images {ann_file} cannot be read: {error}') from None
    images, labels, there = [], {}, {}
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        where = f'{ann_file}, line {number}: {line[:200]}'
        name, _, index = line.rpartition(' ')
        if not name or not index.isdecimal():
            raise InputError(f"{where}: a line is an image's path below {folder}, a space, and the index of its class")
        label, path = int(index), os.path.join(folder, name.strip())
        if label >= len(classes):
            raise InputError(f'{where}: the {len(classes)} classes are 0 to {len(classes) - 1}: {shorten(classes, 10)}')
        parent = os.path.dirname(path)
        if parent not in there:
            there[parent] = {entry.name for entry in _scan(parent)} if os.path.isdir(parent) else set()
        if os.path.basename(path) not in there[parent]:
            raise InputError(f'{where}: {path} does not exist')
        if labels.setdefault(path, label) != label:
            raise InputError(f'{where}: another line gives the image the class {labels[path]}')
        top = name.strip().split('/')[0]
        if top in classes and top != classes[label]:
            raise InputError(
                f'{where}: the image is in the folder {top}, and the class {label} is {classes[label]}: number the '
                f'classes in the order of metainfo.classes, by default sorted: {shorten(classes, 10)}'
            )
        images.append(dict(img_path=path, gt_label=label))
    if not images:
        raise InputError(f'the list of images {ann_file} is empty')
    return images


def find_images(folder: str) -> Iterator[str]:
    """Yields the paths of the images in a folder and its subfolders, in the file system's order."""
    for entry in _scan(folder):
        if entry.is_dir():
            yield from find_images(entry.path)
        elif entry.name.lower().endswith(EXTENSIONS):
            yield entry.path


def _scan(folder: str) -> Iterator[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if not entry.name.startswith('.') and entry.name not in _NO_CLASSES)
    except OSError as error:
        raise InputError(f'the image folder {folder} cannot be read: {error.strerror}') from None


@DATASETS.register_module()
class ImageFolder(BaseDataset):
    """Images whose class is the folder they are in: ``<data_root>/<data_prefix>/<class>/**/*.jpg``.

    The classes are the folders' names, sorted, unless ``metainfo`` has ``classes``: then only those folders are read,
    in that order. Hidden files and those without the suffix of an image are ignored.

    With ``ann_file``, a list of ``relative/path class_index`` lines as in MMPretrain chooses the images and gives their
    classes: indices of ``metainfo.classes``, or of the sorted folders. Then the images may lie in any folders.

    An image that the pipeline cannot read raises; training may skip some (``train_cfg.max_broken_images``). OpenCV, the
    default ``imdecode_backend``, fills truncated JPEGs with grey; Pillow raises.

    Args:
        data_root: The folder of the data.
        data_prefix: The split's folder in it, as a string or as ``dict(img_path=...)``.
        ann_file: A list of the images to use, with paths relative to that folder; relative to ``data_root`` itself.
        kwargs: Arguments of MMEngine's ``BaseDataset``: ``metainfo``, ``pipeline``, ``test_mode``, ``indices``, ...

    Raises:
        InputError: The folder, a class in it or all images are missing, or the list is wrong; later, an image cannot be
            read.
    """

    def __init__(self, data_root: str = '', data_prefix: str | dict = '', ann_file: str = '', **kwargs):
        prefix = data_prefix if isinstance(data_prefix, dict) else dict(img_path=data_prefix)
        super().__init__(ann_file=ann_file, data_root=data_root, data_prefix=prefix, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Returns a dict of ``img_path`` and ``gt_label`` for each image, ordered by class and path, or as listed."""
        root, names = self.data_prefix['img_path'], self._metainfo.get('classes')
        if self.ann_file:
            classes = self._metainfo['classes'] = tuple(names or find_classes(root))
            return read_list(self.ann_file, root, classes)
        classes = self._metainfo['classes'] = find_classes(root, names)
        with ThreadPoolExecutor() as threads:  # network file systems are slow to answer, but answer many at once
            folders = threads.map(lambda name: sorted(find_images(os.path.join(root, name))), classes)
            images = [dict(img_path=path, gt_label=label) for label, paths in enumerate(folders) for path in paths]
        if not images:
            raise InputError(f'there are no images in the folders of {root}: they must end in {", ".join(EXTENSIONS)}')
        return images

    def prepare_data(self, idx: int) -> dict | None:
        """Returns what the pipeline makes of an image; names one that cannot be read, which decoders do not."""
        try:
            return super().prepare_data(idx)
        except Exception as error:  # decoders raise anything
            fault = find_fault(self.get_data_info(idx), decode=True, load=loader_of(self))
            if not fault:
                raise
            raise unreadable_error(fault) from error
