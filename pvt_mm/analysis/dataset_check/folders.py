"""Faults in folders of classes."""

from collections.abc import Sequence
from typing import Any

from mmengine.config import Config

from pvt_mm.analysis.dataset_check.findings import Item, Split
from pvt_mm.utils.errors import InputError


def list_folders(split: Split, dataset: Any, pipeline: Sequence[dict], config: Config) -> None:
    try:
        split.items = [Item(info['img_path'], label=info['gt_label']) for info in dataset.load_data_list()]
    except InputError as error:
        split.add('missing', str(error))
    split.classes = list(dataset.metainfo.get('classes') or ())
