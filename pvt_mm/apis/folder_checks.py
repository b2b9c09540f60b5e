"""Checks of image folders before a run starts."""

import os
from pathlib import Path

from mmengine.config import Config

from pvt_mm.apis.config import leaf_datasets
from pvt_mm.datasets.classes import classes_of, image_folder
from pvt_mm.datasets.image_folder import find_images
from pvt_mm.utils.errors import InputError
from pvt_mm.utils.text import shorten


def check_folders(dataset: dict, config: Config, split: str) -> None:
    """Checks that an ImageFolder has two classes, an image of each, and the classes of the training data if any."""
    folder = image_folder(dataset)
    if folder is None:
        return
    classes = classes_of(dataset)
    if len(classes) < 2:
        raise InputError(f'the {split} data has one class, {classes[0]}: {folder} must have a folder for each class')
    empty = [name for name in classes if not any(find_images(os.path.join(folder, name)))]
    if empty:
        raise InputError(
            f'the {split} data has no image of {shorten(empty)}: fill the folder in {folder}, or remove it'
        )
    for other in leaf_datasets(config.train_dataloader.dataset) if config.get('train_dataloader') else ():
        trained_on = image_folder(other)
        if not trained_on or not any(Path(trained_on).glob('*/')):
            continue
        trained = classes_of(other)
        for lacking, names in ((folder, set(trained) - set(classes)), (trained_on, set(classes) - set(trained))):
            if names:
                raise InputError(
                    f'the classes of the train and the {split} data differ: {lacking} has no {shorten(sorted(names))}; '
                    'give both the same folders, or name the classes of both with metainfo.classes'
                )
        if trained != classes:
            raise InputError(f'metainfo.classes of the train and the {split} data differ in order: write them alike')
