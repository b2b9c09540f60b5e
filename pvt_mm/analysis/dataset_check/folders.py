"""Faults in folders of classes."""

from collections.abc import Sequence
from typing import Any

from mmengine.config import Config

from pvt_mm.analysis.dataset_check.findings import Item, Split
from pvt_mm.datasets.folder_faults import find_folder_faults, find_repeated_images
from pvt_mm.utils.errors import InputError


def list_folders(split: Split, dataset: Any, pipeline: Sequence[dict], config: Config) -> None:
    images = []
    try:
        images = dataset.load_data_list()
    except InputError as error:
        split.add('missing', str(error))
    split.items = [Item(info['img_path'], label=info['gt_label']) for info in images]
    split.classes = list(dataset.metainfo.get('classes') or ())
    faults = find_folder_faults(dataset.data_prefix['img_path'], split.classes, bool(dataset.ann_file))
    for fault in [*(faults if split.classes else ()), *find_repeated_images(images)]:
        split.add(fault.kind, fault.text)
