"""Checks of label maps before a run starts."""

from concurrent.futures import ThreadPoolExecutor

from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS
from rich.console import Console
from rich.progress import track

from pvt_mm.apis.config import annotation_steps, as_list
from pvt_mm.apis.remembered import Remembered
from pvt_mm.utils.errors import InputError, config_errors


def check_labels(dataset: dict, config: Config, split: str) -> None:
    """Checks that label maps have no labels but the classes; ADE20K's 22,000 take about a minute, once."""
    heads = as_list(config.model.get('module', config.model).get('decode_head'))
    steps = annotation_steps(dataset)
    if not heads or not steps or config.get('resume'):
        return
    with config_errors(f'the {split} data cannot be built'):
        infos = [info for info in DATASETS.build({**dataset, 'pipeline': []}) if 'seg_map_path' in info]
        load = TRANSFORMS.build(steps[0])
    classes, ignored = heads[-1].num_classes, heads[-1].get('ignore_index', 255)
    settings = (classes, ignored, steps[0], [sorted(info.items()) for info in infos])
    maps = [info['seg_map_path'] for info in infos]
    checked = Remembered('labels', dataset.get('data_root') or '', maps, settings)
    if checked.has_passed():
        return

    def greatest_label(info: dict) -> int:
        try:
            labels = load(dict(info))['gt_seg_map']
        except (OSError, ValueError, AssertionError) as error:
            raise InputError(f'the label map {info["seg_map_path"]} cannot be read: {error}') from error
        return labels[labels != ignored].max(initial=0).item()

    task = f'checking the labels of the {split} data'
    with ThreadPoolExecutor() as threads:
        maps = zip(infos, threads.map(greatest_label, infos), strict=True)
        for info, label in track(maps, task, len(infos), console=Console(stderr=True), transient=True):
            if label >= classes:
                reduced = ' after reduce_zero_label' if info['reduce_zero_label'] else ''
                threads.shutdown(wait=False, cancel_futures=True)
                raise InputError(
                    f'{info["seg_map_path"]} has the label {label}{reduced}, and the {classes} classes are 0 to '
                    f'{classes - 1}: fix the label map, or set num_classes and metainfo.classes'
                )
    checked.record()
