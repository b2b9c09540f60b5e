"""Checks of label maps before a run starts."""

import contextlib
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS
from rich.console import Console
from rich.progress import track

from pvt_mm.apis.config import annotation_steps, as_list
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
    checked = CheckedLabels(infos, (classes, ignored, steps[0]), dataset.get('data_root') or '')
    if checked.was_checked():
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


class CheckedLabels:
    """Remembers label maps that were checked, by their paths, sizes and times of change, in the user's cache folder.

    That is ``$XDG_CACHE_HOME/pvt_mm``, or ``~/.cache/pvt_mm``; if it cannot be written, nothing is remembered. Nor are
    label maps that are not on this machine's disks.

    Args:
        infos: MMSegmentation's description of each image.
        settings: What else the outcome depends on.
        data_root: The folder of the data set, which has a file of its own in the cache.
    """

    def __init__(self, infos: list[dict], settings: tuple, data_root: str):
        cache = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
        root = hashlib.sha256(os.fsencode(os.path.abspath(data_root))).hexdigest()[:16]
        self.file = Path(cache, 'pvt_mm', f'checked_labels_{root}')
        digest = hashlib.sha256(repr(settings).encode())
        try:
            with ThreadPoolExecutor() as threads:
                states = threads.map(os.stat, [info['seg_map_path'] for info in infos])
                for info, state in zip(infos, states, strict=True):
                    digest.update(repr((sorted(info.items()), state.st_size, state.st_mtime_ns)).encode())
            self.digest = digest.hexdigest() if os.path.isabs(cache) else None
        except OSError:
            self.digest = None

    def was_checked(self) -> bool:
        """Returns whether they were checked before."""
        with contextlib.suppress(OSError, ValueError):
            return self.digest in self.file.read_text().split()
        return False

    def record(self) -> None:
        """Records that they are valid."""
        if self.digest is None:
            return
        with contextlib.suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with open(self.file, 'a') as records:
                records.write(f'{self.digest}\n')
