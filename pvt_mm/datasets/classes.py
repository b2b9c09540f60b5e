"""The classes of a data set, from its config."""

import os
from collections.abc import Sequence

from mmengine.fileio import list_from_file
from mmengine.registry import DATASETS

from pvt_mm.datasets.image_folder import find_classes
from pvt_mm.utils.errors import InputError
from pvt_mm.utils.text import shorten


def image_folder(dataset: dict) -> str | None:
    """Returns the folder of an ImageFolder's classes, or None for another data set."""
    if getattr(dataset['type'], '__name__', dataset['type']).split('.')[-1] != 'ImageFolder':
        return None
    prefix = dataset.get('data_prefix') or ''
    return os.path.join(dataset.get('data_root') or '', prefix['img_path'] if isinstance(prefix, dict) else prefix)


def classes_of(dataset: dict) -> list[str]:
    """Returns the names of the classes of a data set's config, those of its type if it names none.

    Raises:
        InputError: ``metainfo.classes`` is a string that is not the path of a file of names, or names a class twice.
    """
    given = (dataset.get('metainfo') or {}).get('classes')
    if isinstance(given, str):
        if not os.path.isfile(given):  # MMEngine reads a file of names
            raise InputError(f'metainfo.classes is the string {given!r}: write a tuple, ({given!r},) for one class')
        given = list_from_file(given)
    folder = image_folder(dataset)
    if folder is not None:
        has_list = bool(dataset.get('ann_file'))
        return list(given if given and has_list else find_classes(folder, given))
    of_type = _classes_of_type(dataset)
    others = sorted({*given} - {*of_type}) if given and of_type and _selects_classes(dataset) else []
    if others:
        raise InputError(
            f'{dataset["type"]} has its own {len(of_type)} classes and labels, without {shorten(others)}: '
            "for classes of your own, set type='BaseSegDataset' and reduce_zero_label=False (or True if the label 0 of "
            'the label maps is no class)'
        )
    if given is None:
        given = of_type
    twice = sorted({name for name in given or () if list(given).count(name) > 1})
    if twice:
        raise InputError(f'metainfo.classes has {shorten(twice)} twice: name each class once')
    return list(given or ())


def has_own_classes(dataset: dict) -> bool:
    """Returns whether the config of a data set names its classes, rather than the data set's type."""
    return classes_of(dataset) != list(_classes_of_type(dataset) or ())


def _classes_of_type(dataset: dict) -> Sequence[str] | None:
    with DATASETS.switch_scope_and_registry(None) as registry:  # that of the default scope, such as mmdet
        return getattr(registry.get(dataset['type']), 'METAINFO', {}).get('classes')


def _selects_classes(dataset: dict) -> bool:
    """Returns whether classes that are given select some of those of the type, as in MMSegmentation."""
    with DATASETS.switch_scope_and_registry(None) as registry:
        return hasattr(registry.get(dataset['type']), 'get_label_map')


def differing_classes(trained: Sequence[str], tested: Sequence[str], train: str, test: str) -> str:
    """Returns how the classes of two data sets, called ``train`` and ``test``, differ, and what to do; '' if not."""
    if list(trained) == list(tested):
        return ''
    what, listed = f'the classes of the {train} and the {test} data differ', {train: trained, test: tested}
    lacking = [(train, set(tested) - set(trained)), (test, set(trained) - set(tested))]
    near = {split: {name.casefold(): name for name in of} for split, of in ((train, trained), (test, tested))}
    told = []
    for split, names in lacking:
        if names:
            alike = sorted(near[split][name.casefold()] for name in names if name.casefold() in near[split])
            told.append(f'the {split} data has no {shorten(sorted(names))}' + f', but {shorten(alike)}' * bool(alike))
    if not told:
        what = f'{what} in order'
        told = [f'those of the {split} data are {shorten(classes, 10)}' for split, classes in listed.items()]
    return (
        f'{what}: {", and ".join(told)}; give both the same metainfo.classes (for an ImageFolder, or the same folders)'
    )
