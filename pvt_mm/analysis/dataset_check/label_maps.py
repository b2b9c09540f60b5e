"""Faults in label maps."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import TRANSFORMS

from pvt_mm.analysis.dataset_check.findings import Findings, Item, Split, find_step


def list_maps(split: Split, dataset: Any, pipeline: Sequence[dict], config: Config) -> None:
    step = find_step(pipeline, 'LoadAnnotations')
    infos = dataset.load_data_list()
    split.items = [Item(info['img_path'], seg_map=info if 'seg_map_path' in info else None) for info in infos]
    folder = dataset.data_prefix.get('seg_map_path')
    if not folder or not step:
        split.classes = []  # without label maps no class has examples
        return
    with TRANSFORMS.switch_scope_and_registry(None) as registry:
        split.load_map = registry.build(step)
    heads = config.model.get('module', config.model).get('decode_head') or {}
    split.ignored = (heads[-1] if isinstance(heads, list) else heads).get('ignore_index', 255)
    if not os.path.isfile(dataset.ann_file):  # the images on disk are the list, so look for maps without an image
        listed = {os.path.normpath(info['seg_map_path']) for info in infos}
        maps = (os.path.normpath(path) for path in Path(folder).rglob(f'*{dataset.seg_map_suffix}'))
        for path in sorted(set(maps) - listed):
            stem = os.path.relpath(path, folder).removesuffix(dataset.seg_map_suffix)
            image = os.path.join(dataset.data_prefix['img_path'], stem + dataset.img_suffix)
            split.add('missing image', f'{image} of the label map {path} does not exist')


def check_map(found: Findings, split: Split, info: dict, size: tuple[int, int] | None) -> None:
    path = info['seg_map_path']
    try:
        labels = split.load_map(dict(info))['gt_seg_map']
    except FileNotFoundError:
        found.add('missing label map', f'{path} of the image {info["img_path"]} does not exist')
        return
    except Exception as error:  # decoders raise anything
        found.add('unreadable label map', f'{path}: {error}')
        return
    if size and labels.shape != size:
        shape = ' x '.join(map(str, labels.shape[::-1]))
        found.add('wrong size', f'{path} has {shape} pixels, its image has {size[1]} x {size[0]}')
    values, counts = np.unique(labels[labels != split.ignored], return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        if 0 <= value < len(split.classes):
            found.seen[value] += 1
        else:
            reduced = ' after reduce_zero_label' if info.get('reduce_zero_label') else ''
            text = f'{count} pixels have the label {value}{reduced}, and the classes are 0 to {len(split.classes) - 1}'
            found.add('label outside', f'{path}: {text}')
