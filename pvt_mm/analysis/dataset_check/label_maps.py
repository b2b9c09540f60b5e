"""Faults in label maps."""

from collections.abc import Sequence
from typing import Any

from mmengine.config import Config
from mmengine.registry import TRANSFORMS

from pvt_mm.analysis.dataset_check.findings import Findings, Item, Split, find_step
from pvt_mm.apis.coco_checks import predicts_only
from pvt_mm.apis.config import as_list
from pvt_mm.datasets.label_maps import LabelMaps, find_file_faults


def list_maps(split: Split, dataset: Any, pipeline: Sequence[dict], config: Config) -> None:
    step = find_step(pipeline, 'LoadAnnotations')
    infos = dataset.load_data_list()
    split.items = [Item(info['img_path'], seg_map=info if 'seg_map_path' in info else None) for info in infos]
    has_maps = bool(dataset.data_prefix.get('seg_map_path') and step) and not predicts_only(config, split.name)
    for fault in find_file_faults(dataset, infos, has_maps):
        if fault.kind == 'missing label map' or (fault.kind == 'missing image' and not fault.is_warning):
            split.remarks.append(fault.text)  # each of them is a fault, found when it is read
        else:
            split.add(fault.kind, fault.text)
    if not has_maps:
        split.classes = []  # without label maps no class has examples
        split.remarks.append('label maps are not read: predictions can be written, not evaluated')
        return
    heads = as_list(config.model.get('module', config.model).get('decode_head'))
    head = heads[-1] if heads else {}
    own_classes = split.classes != list(type(dataset).METAINFO.get('classes') or ())
    classes = split.classes or head.get('num_classes', 0)
    with TRANSFORMS.switch_scope_and_registry(None) as registry:
        split.maps = LabelMaps(registry.build(step), classes, head.get('ignore_index', 255), own_classes)


def check_map(found: Findings, split: Split, info: dict, size: tuple[int, int] | None) -> None:
    labels, faults = split.maps.check(info, size)
    found.seen.update(labels)
    for fault in faults:
        found.add(fault.kind, fault.text)


def check_all_maps(splits: Sequence[Split]) -> None:
    """Adds what is wrong with all label maps of a split."""
    for split in splits:
        parts = sum(other.name == split.name for other in splits)  # of concatenated data, each lacks some classes
        for fault in split.maps.find_faults(split.name == 'train' and parts == 1) if split.maps else ():
            if not fault.is_warning:
                split.add(fault.kind, fault.text)
            elif 'reduce_zero_label' in fault.text:  # that classes are never seen is said for all kinds of data
                split.remarks.append(fault.text)
