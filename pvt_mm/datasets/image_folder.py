"""Pictures in one folder per class, as ImageNet and torchvision's ``ImageFolder`` have them."""

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from pvt_mm.errors import InputError
from pvt_mm.registry import DATASETS

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.ppm', '.pgm')
BLACK = (224, 224)  # (H, W) of what stands for an unreadable image in a test


def _scan(folder: str) -> Iterator[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if not entry.name.startswith('.'))
    except OSError as error:
        raise InputError(f'the image folder {folder} cannot be read: {error.strerror}') from None


def find_classes(folder: str, names: Sequence[str] | None = None) -> tuple[str, ...]:
    """Returns the names of the folders in ``folder``, sorted, or ``names`` where they are given.

    Raises:
        InputError: The folder cannot be read, has no folder in it, or has none of a name that is given.
    """
    there = {entry.name for entry in _scan(folder) if entry.is_dir()}
    if not there:
        raise InputError(f'{folder} has no folder in it: it must have one for each class, with its images')
    missing = [name for name in names or () if name not in there]
    if missing:
        raise InputError(
            f'{folder} has no folder {", ".join(missing[:5])}{" …" if len(missing) > 5 else ""}: each of '
            'metainfo.classes must have one; without metainfo.classes the folders are the classes'
        )
    return tuple(names or sorted(there))


def find_images(folder: str) -> Iterator[str]:
    """Yields the paths of the images in a folder and the folders below, in the file system's order.

    Raises:
        InputError: A folder cannot be read.
    """
    for entry in _scan(folder):
        if entry.is_dir():
            yield from find_images(entry.path)
        elif entry.name.lower().endswith(EXTENSIONS):
            yield entry.path


@DATASETS.register_module()
class ImageFolder(BaseDataset):
    """Images whose class is the folder they are in: ``<data_root>/<data_prefix>/<class>/**/*.jpg``.

    The classes are the folders' names, sorted, unless ``metainfo`` has ``classes``: then those folders alone are read,
    in that order. Hidden files and those that are no images by their name are passed over.

    An image that ``LoadImageFromFile`` cannot read is named in the log, once, and does not end the run: in training
    another one is drawn, in a test it is black, so that every image counts. (OpenCV, the default
    ``imdecode_backend``, reads what there is of a truncated JPEG; Pillow refuses it.)

    Args:
        data_root: The folder of the data.
        data_prefix: The split's folder below it, as a string or as ``dict(img_path=...)``.
        kwargs: Those of MMEngine's ``BaseDataset``: ``metainfo``, ``pipeline``, ``test_mode``, ``indices``, ...

    Raises:
        InputError: The folder, a class in it or any image is missing; later, all images or more than ``max_refetch``
            in succession cannot be read.
    """

    def __init__(self, data_root: str = '', data_prefix: str | dict = '', **kwargs):
        prefix = data_prefix if isinstance(data_prefix, dict) else dict(img_path=data_prefix)
        self._in_succession = 0
        super().__init__(data_root=data_root, data_prefix=prefix, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Returns a dict of ``img_path`` and ``gt_label`` for each image, ordered by class and path."""
        root = self.data_prefix['img_path']
        classes = self._metainfo['classes'] = find_classes(root, self._metainfo.get('classes'))
        with ThreadPoolExecutor() as threads:  # a folder on a network answers slowly, and many at once
            folders = threads.map(lambda name: sorted(find_images(os.path.join(root, name))), classes)
            images = [dict(img_path=path, gt_label=label) for label, paths in enumerate(folders) for path in paths]
        if not images:
            raise InputError(f'there is no image in the folders of {root}: they must have {", ".join(EXTENSIONS)}')
        return images

    def full_init(self) -> None:
        """Lists the images, if that has not been done."""
        super().full_init()
        # shared with the worker processes, which may be new ones in every epoch
        self._unreadable = torch.zeros(len(self), dtype=torch.bool).share_memory_()

    def prepare_data(self, idx: int) -> dict | None:
        """Returns what the pipeline makes of an image, or None if it is one to train on that cannot be read."""
        data = self.get_data_info(idx)
        for step in self.pipeline.transforms:
            data = self._load(step, data) if isinstance(step, LoadImageFromFile) else step(data)
            if data is None:
                return None
        return data

    def _load(self, step: LoadImageFromFile, data: dict) -> dict | None:
        try:
            loaded = step(data)
        except Exception as error:  # decoders raise anything
            self._report(data, error)
            black = dict(img=np.zeros((*BLACK, 3), np.uint8), img_shape=BLACK, ori_shape=BLACK)
            return {**data, **black} if self.test_mode else None
        self._in_succession = 0
        return loaded

    def _report(self, data: dict, error: Exception) -> None:
        """Names an image that cannot be read, in the log or, where there is no other, in an InputError."""
        path, why = data['img_path'], f'({type(error).__name__}: {" ".join(str(error).split())})'
        if not self._unreadable[data['sample_idx']]:
            self._unreadable[data['sample_idx']] = True
            instead = 'it counts as a black one' if self.test_mode else 'another one is trained on'
            # an ERROR, since of the processes of a distributed run the first alone logs warnings
            print_log(f'the image {path} cannot be read {why}: {instead}', logger='current', level=logging.ERROR)
        self._in_succession += 1
        if self._in_succession > self.max_refetch or self._unreadable.all():
            raise InputError(
                f'images cannot be read, {self._in_succession} in succession, the last one {path} {why}: restore '
                "them, or mend the pipeline's LoadImageFromFile"
            ) from error
