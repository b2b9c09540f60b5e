"""Images in one folder per class, as in ImageNet and torchvision's ``ImageFolder``."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from mmengine.dataset import BaseDataset

from pvt_mm.datasets.image_io import EXTENSIONS, find_fault, unreadable_error
from pvt_mm.registry import DATASETS
from pvt_mm.utils.errors import InputError
from pvt_mm.utils.text import shorten


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
            yield from (entry for entry in entries if not entry.name.startswith('.'))
    except OSError as error:
        raise InputError(f'the image folder {folder} cannot be read: {error.strerror}') from None


@DATASETS.register_module()
class ImageFolder(BaseDataset):
    """Images whose class is the folder they are in: ``<data_root>/<data_prefix>/<class>/**/*.jpg``.

    The classes are the folders' names, sorted, unless ``metainfo`` has ``classes``: then only those folders are read,
    in that order. Hidden files and those without the suffix of an image are ignored.

    An image that the pipeline cannot read raises; training may skip some (``train_cfg.max_broken_images``). OpenCV, the
    default ``imdecode_backend``, fills truncated JPEGs with grey; Pillow raises.

    Args:
        data_root: The folder of the data.
        data_prefix: The split's folder in it, as a string or as ``dict(img_path=...)``.
        kwargs: Arguments of MMEngine's ``BaseDataset``: ``metainfo``, ``pipeline``, ``test_mode``, ``indices``, ...

    Raises:
        InputError: The folder, a class in it or all images are missing; later, an image cannot be read.
    """

    def __init__(self, data_root: str = '', data_prefix: str | dict = '', **kwargs):
        prefix = data_prefix if isinstance(data_prefix, dict) else dict(img_path=data_prefix)
        super().__init__(data_root=data_root, data_prefix=prefix, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Returns a dict of ``img_path`` and ``gt_label`` for each image, ordered by class and path."""
        root = self.data_prefix['img_path']
        classes = self._metainfo['classes'] = find_classes(root, self._metainfo.get('classes'))
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
            fault = find_fault(self.get_data_info(idx), decode=True)
            if not fault:
                raise
            raise unreadable_error(fault) from error
