"""Checks of image folders before a run starts."""

import os
from itertools import islice

from pvt_mm.apis.faults import report
from pvt_mm.datasets.classes import classes_of, image_folder
from pvt_mm.datasets.folder_faults import MAX_COMPARED, find_folder_faults, find_repeated_images
from pvt_mm.datasets.image_folder import find_images, read_list


def check_folders(dataset: dict, split: str) -> None:
    """Checks that an ImageFolder has two classes, and an image of each in a folder of its own, or a valid list.

    Raises:
        InputError: It does not. Images of two classes, or of none, are warnings.
    """
    folder = image_folder(dataset)
    if folder is None:
        return
    classes, ann_file = classes_of(dataset), dataset.get('ann_file')
    report(find_folder_faults(folder, classes, bool(ann_file)), split)
    if ann_file:
        images = read_list(os.path.join(dataset.get('data_root') or '', ann_file), folder, classes)
    else:
        listed = ((label, find_images(os.path.join(folder, name))) for label, name in enumerate(classes))
        found = (dict(img_path=path, gt_label=label) for label, paths in listed for path in paths)
        images = list(islice(found, MAX_COMPARED + 1))
    report(find_repeated_images(images), split)
