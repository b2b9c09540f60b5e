"""Faults in COCO annotations."""

import contextlib
import os
from collections import defaultdict
from collections.abc import Sequence

from mmengine.config import Config
from mmengine.dataset import BaseDataset, Compose
from mmengine.registry import TRANSFORMS

from pvt_mm.analysis.dataset_check.findings import Item, Split
from pvt_mm.apis.coco_checks import find_data_faults, load, needs_masks, parse, predicts_only, why_dropped
from pvt_mm.datasets.coco import KINDS, read_coco
from pvt_mm.datasets.coco.faults import stops_training
from pvt_mm.datasets.coco.files import ImageFiles
from pvt_mm.utils.errors import InputError, config_errors


def list_coco(split: Split, dataset: BaseDataset, pipeline: Sequence[dict], config: Config) -> None:
    """Adds the faults of the annotations to a split, and its images with what training makes of their objects."""
    part = split.name.split(',')[0]  # of 'val, test'
    annotated = not predicts_only(config, part)
    with config_errors(f'the pipeline of the {split.name} data'), TRANSFORMS.switch_scope_and_registry(None):
        dataset.pipeline = Compose(list(pipeline))
    dataset.serialize_data = False
    try:
        content = read_coco(dataset.ann_file)
    except InputError as error:
        split.add('invalid annotations', str(error))
        return
    masks = needs_masks({'pipeline': pipeline}, config, part)
    explained: set[str] = set()
    warned: defaultdict[str, list[str]] = defaultdict(list)
    for fault in find_data_faults(dataset, content, annotated, masks, sampled=0, split=part):
        if KINDS[fault.kind].is_warning:
            warned[fault.kind].append(fault.text)
            continue
        fix = fault.fix or (KINDS[fault.kind].fix if fault.kind not in explained else '')
        explained.add(fault.kind)
        split.add(fault.kind, f'{fault.text}; {fix}' if fix else fault.text)
    for kind, texts in warned.items():
        text = f'{texts[0]} ({len(texts):,} such annotations); {KINDS[kind].fix}'
        if stops_training(kind, len(texts), content, part):
            split.add(kind, text)
        else:
            split.remarks.append(text)
    if not annotated and not content.get('annotations'):
        split.remarks.append('there is no ground truth: the images can only be predicted on')
        split.classes = []
    _list_images(split, dataset, content)


def _list_images(split: Split, dataset: BaseDataset, content: dict) -> None:
    folder = dataset.data_prefix.get('img') or ''
    files = ImageFiles(folder)
    items: dict = {}
    with contextlib.suppress(KeyError, TypeError, AttributeError):  # among the faults
        for image in content['images']:
            name, size = image['file_name'], (image.get('height'), image.get('width'))
            item = Item(os.path.join(folder, name), size if all(type(side) is int for side in size) else None)
            item.exists = '://' in item.path or files.exists(name)
            items.setdefault(image['id'], (item, image))
    split.items = [item for item, _ in items.values()]
    try:
        if not dataset._fully_initialized:  # by a fault of an annotation
            load(dataset, {**content, 'annotations': []})
    except Exception:  # among the faults
        split.classes = []
        return
    for one in content.get('annotations', ()):
        with contextlib.suppress(Exception):  # among the faults
            item, image = items[one['image_id']]
            instance, label = parse(dataset, image, one), dataset.cat2label.get(one['category_id'])
            if instance and not instance['ignore_flag']:
                split.seen[instance['bbox_label']] += 1
            elif label is None:
                split.seen[None] += 1
            if label is not None:
                ignored = 'crowd' if instance and instance['ignore_flag'] else ''
                item.drawn.append((label, one, ignored if instance else why_dropped(one)))
