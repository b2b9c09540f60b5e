"""The classes of a data set, from its config."""

import os

from mmengine.registry import DATASETS

from pvt_mm.datasets.image_folder import find_classes
from pvt_mm.utils.errors import InputError


def image_folder(dataset: dict) -> str | None:
    """Returns the folder of an ImageFolder's classes, or None for another data set."""
    if getattr(dataset['type'], '__name__', dataset['type']).split('.')[-1] != 'ImageFolder':
        return None
    prefix = dataset.get('data_prefix') or ''
    return os.path.join(dataset.get('data_root') or '', prefix['img_path'] if isinstance(prefix, dict) else prefix)


def classes_of(dataset: dict) -> list[str]:
    """Returns the names of the classes of a data set's config, those of its type if it names none."""
    given = (dataset.get('metainfo') or {}).get('classes')
    if isinstance(given, str):
        raise InputError(f'metainfo.classes is the string {given!r}: write a tuple, ({given!r},) for one class')
    folder = image_folder(dataset)
    if folder is not None:
        return list(find_classes(folder, given))
    if given is None:
        with DATASETS.switch_scope_and_registry(None) as registry:  # that of the default scope, such as mmdet
            given = getattr(registry.get(dataset['type']), 'METAINFO', {}).get('classes')
    return list(given or ())
