"""The figures of exported models in docs/deploy.md: agreement with PyTorch, metrics, sizes, speed and memory."""

import os
import re
import shlex
import textwrap
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

from pvt_mm.analysis.benchmark.contender import Contender, Result, markdown, operator_table
from pvt_mm.analysis.benchmark.machine import int8_instructions, machine
from pvt_mm.analysis.benchmark.measure import measure
from pvt_mm.analysis.benchmark.prediction import find_run
from pvt_mm.analysis.benchmark.process import available_cores
from pvt_mm.apis.config import load_config
from pvt_mm.apis.inference import load_model
from pvt_mm.checkpoint.reader import safe_reading
from pvt_mm.deploy import export
from pvt_mm.utils.errors import InputError

MARKS = re.compile('(?<=<!-- figures -->\n).*?(?=<!-- /figures -->)', re.DOTALL)
PYTORCH, EXACT = 'PyTorch', 'float32'
PRECISIONS: dict[str, dict[str, str]] = {
    EXACT: {},
    'float16': dict(half='fp16'),
    'int8, dynamic': dict(int8='dynamic'),
    'int8, static': dict(int8='static'),
}
# The metrics of `pvt_mm.deploy.verify`, in points of 100.
METRICS = {'coco/bbox_mAP': 'box AP', 'coco/segm_mAP': 'mask AP', 'mIoU': 'mIoU', 'accuracy/top1': 'top-1 accuracy'}
AGREEMENT = ['model', 'predictions', 'missing', 'extra', 'boxes', 'scores', 'masks', 'pixels']
SLOWER = 1.05  # times PyTorch's time of the model, from which its operators are shown


class Exported(NamedTuple):
    """A model exported in all precisions, and how fast it is."""

    name: str
    model: str  # its class
    found: dict[str, dict]  # of `export_model`, by precision
    failed: dict[str, str]  # why a precision could not be exported
    results: dict[str, Result]  # by precision, and PyTorch's


class Conditions(NamedTuple):
    """How models are compared; paths as they were given."""

    work_dirs: Sequence[str]
    folder: str  # of the images
    images: tuple[str, ...]  # in it
    rounds: int
    threads: int  # of PyTorch, OpenCV and onnxruntime; 0 for one a core
    val_images: int  # of the test data, to evaluate on

    @property
    def thread_count(self) -> int:
        """The number of threads."""
        return self.threads or available_cores()

    @property
    def command(self) -> str:
        """The command that makes the figures."""
        flags = ['--images', self.folder, '--rounds', str(self.rounds), '--val-images', str(self.val_images)]
        flags += ['--threads', str(self.threads)] if self.threads else []
        return shlex.join(['tools/deploy_report.py', *self.work_dirs, *flags])


def export_and_measure(work_dir: str, where: Path, conditions: Conditions, tell: Callable[[str], Any]) -> Exported:
    """Exports a run's model in all precisions to the folder ``where``, and measures them and PyTorch in turns.

    Raises:
        InputError: The work directory has no model that can predict, or a file cannot be measured.
    """
    path, checkpoint = find_run(work_dir)
    config, name = load_config(path), Path(work_dir).resolve().name
    about = dict(config=os.path.basename(path), checkpoint=os.path.basename(checkpoint))
    settings = export.with_images(export.Settings(preprocess=True), config, conditions.folder, conditions.val_images)
    found, failed = {}, {}
    kept = dict(shape=(0, 0), mode='predict', images=conditions.images, threads=conditions.thread_count)
    contenders = {PYTORCH: Contender(work_dir, label=PYTORCH, **kept)}
    with safe_reading():
        model = load_model(config, checkpoint).cpu()
    verified: dict = {}
    for precision, options in PRECISIONS.items():
        tell(f'{name}: exporting as {precision}')
        file = where / f'{name}.{re.sub("[^a-z0-9]+", "_", precision)}.onnx'
        try:
            options = settings._replace(**options)
            found[precision] = export.export_model(model, config, file, options, about, verified)
            contenders[precision] = Contender(str(file), label=precision, **kept)
        except Exception as error:  # one failure must not cost the figures of the others
            kind = '' if isinstance(error, InputError) else f'{type(error).__name__}: '
            failed[precision] = f'{kind}{" ".join(str(error).split())[:300].rstrip(". ")}'
            tell(f'{name}: not exported as {precision}: {failed[precision]}')
    results = measure(list(contenders.values()), conditions.rounds, profiled=True)
    return Exported(name, type(model).__name__, found, failed, dict(zip(contenders, results, strict=True)))


def figures(models: Sequence[Exported], conditions: Conditions) -> str:
    """Returns the section of docs/deploy.md."""
    parts = [
        f'{machine("cpu")}, onnxruntime {version("onnxruntime")}, int8 by {int8_instructions()}. Measured in turns, '
        f'one image at a time, the same for all, each in its own process with {conditions.thread_count} threads of '
        f'PyTorch, OpenCV or onnxruntime: {conditions.rounds} rounds over a folder of {len(conditions.images)} images. '
        'All files were exported with `--preprocess`.',
        f'    {conditions.command}',
        'The runs are small models that overfit a few photographs for this comparison and cannot be downloaded: their '
        'AP, mIoU and accuracy say nothing about quality, only about the loss.',
        '### Agreement of the float32 files with PyTorch',
        'The largest differences over images at three sizes each, alone and in a batch of two, in pixels of the image.',
        markdown(_without_empty([AGREEMENT, *map(_agreement, models)])),
        *(_section(one) for one in models),
        'Median and 95th percentile of the time from an image file to the objects of `predictions.json`. Input is '
        "reading and preprocessing, output what turns the model's outputs into objects. Ratios are medians over the "
        'images. Loading begins when Python has started, and includes importing the libraries. A checkpoint of a '
        "training also has the optimizer's state.",
    ]
    return '\n\n'.join(_wrap(part) for part in parts)


def _wrap(text: str) -> str:
    """Returns a paragraph in lines of at most 128 characters; tables, sections and commands stay as they are."""
    return text if '\n' in text or text.startswith(' ') else textwrap.fill(text, 128, break_on_hyphens=False)


def _without_empty(rows: list[list[str]]) -> list[list[str]]:
    """Returns rows without the columns in which all but the head is empty."""
    kept = [any(column[1:]) for column in zip(*rows, strict=True)]
    return [list(compress(row, kept)) for row in rows]


def _agreement(one: Exported) -> list[str]:
    """Returns the row of a model in the table of agreement."""
    if EXACT not in one.found:
        return [one.name, 'not exported', *[''] * (len(AGREEMENT) - 2)]
    found = one.found[EXACT]['agreement'].summary()
    task = one.found[EXACT]['task']
    is_detector, has_masks = task in ('detection', 'instance_segmentation'), task == 'instance_segmentation'
    is_map = task == 'semantic_segmentation'
    return [
        one.name,
        f'{found["objects"]:.0f}',
        f'{found["missing"]:.0f}' if is_detector else '',
        f'{found["extra"]:.0f}' if is_detector else '',
        f'{found["box_px"]:.1g} px' if is_detector else '',
        '' if is_map else f'{found["score"]:.0e}',
        f'IoU {found["mask_iou"]:.4f}' if has_masks else '',
        f'{found["pixels"]:.3%}' if is_map else '',
    ]


def _section(one: Exported) -> str:
    """Returns the table of a model: a column for PyTorch and each precision."""
    columns = [PYTORCH, *(precision for precision in PRECISIONS if precision in one.found)]
    rows = [['', *columns]]
    for metric, name in METRICS.items():
        if any(metric in found['metrics'] for found in one.found.values()):
            points = [found['metrics'][metric] for found in one.found.values()]
            rows.append([name, *(f'{x:.1f}' for x in (points[0]['pytorch'], *(x['onnxruntime'] for x in points)))])
    first = one.results[PYTORCH]
    figures: dict[str, Callable[[Result], str]] = {
        'file, MB': lambda x: _cell(x.megabytes, 1),
        'median, ms': lambda x: _cell(1000 * x.median, 1),
        '95th percentile, ms': lambda x: _cell(1000 * x.p95, 1),
        "times PyTorch's time": lambda x: _cell(first.ratio(x), 2),
        'images/s': lambda x: _cell(x.images / x.median, 1),
        **{f'{part}, ms': lambda x, part=part: _cell(1000 * x.part_medians[part], 1) for part in first.part_medians},
        'peak memory above the model, MB': lambda x: _cell(x.peak_memory and 1000 * x.peak_memory, 0),
        'memory of the process, MB': lambda x: _cell(x.total_memory and 1000 * x.total_memory, 0),
        'loading, s': lambda x: _cell(x.load_seconds, 1),
    }
    rows += [[name, *(cell(one.results[column]) for column in columns)] for name, cell in figures.items()]
    parts = [f'### {one.name} ({one.model})', markdown(rows)]
    parts += [_wrap(f'Not exported as {precision}: {reason}.') for precision, reason in one.failed.items()]
    if EXACT in one.results and one.results[EXACT].part_medians['model'] > SLOWER * first.part_medians['model']:
        parts += ['PyTorch computes the model faster. Where the time goes:']
        parts.append(operator_table([first, one.results[EXACT]]))
    return '\n\n'.join(parts)


def _cell(value: float | None, digits: int) -> str:
    return '' if value is None else f'{value:.{digits}f}'


def replace_figures(text: str, figures: str) -> str:
    """Returns a page with the text between its marks replaced.

    Raises:
        InputError: It has no marks.
    """
    if not MARKS.search(text):
        raise InputError('has no <!-- figures --> and <!-- /figures -->, each on a line of its own: add them')
    return MARKS.sub(lambda _: f'\n{figures}\n\n', text)


def summary(models: Sequence[Exported]) -> list[dict]:
    """Returns the figures of all models, for JSON."""
    return [
        dict(
            model=one.name,
            exported={
                precision: dict(
                    agreement=found['agreement'].summary(), metrics=found['metrics'], megabytes=found['megabytes']
                )
                for precision, found in one.found.items()
            },
            failed=one.failed,
            measured={name: result.summary() for name, result in one.results.items()},
        )
        for one in models
    ]
