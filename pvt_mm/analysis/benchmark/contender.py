"""What a benchmark measures, and the figures of it."""

import collections
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from pvt_mm.models.archs import ARCHS, ARCHS_V2

# This project's backbones, and those that have each arch.
FAMILIES = {'PVT': ARCHS, 'PVTv2': ARCHS_V2}
FAMILY_OF = {arch: family for family, archs in FAMILIES.items() for arch in archs}
MODES = {
    'forward': 'the backbone, without gradients',
    'train': 'the backbone, forward and backward',
    'attention': "the backbone's attention alone, on random queries, keys and values",
    'detector': 'the whole detector or segmentor, without gradients',
    'detector_train': 'the whole detector, its losses on random boxes and backward',
    'end2end': 'all of testing: images from disk through the pipeline and the model to predictions',
    'predict': 'one of the --images at a time, from its file to the objects of predictions.json',
}
PEERS = {
    'mmdet': "MMDetection's backbone, which has no linear attention",
    'hf': "Hugging Face's model; a PVT takes squares only",
}
FORMATS = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}


@dataclass(frozen=True)
class Contender:
    """A model and how to run it. With mode end2end, sizes and batch are those of the config's data."""

    # An arch of either family, the path of a config, with mode 'predict' also of a work directory or an ONNX file, or
    # with mode 'product' the name of a matrix product.
    model: str
    shape: tuple[int, int] = (800, 1344)  # (H, W) of an image in pixels
    mode: str = 'forward'  # one of MODES, or 'product'
    peer: str = ''  # whose backbone: one of PEERS, or '' for this project's
    batch: int = 1  # images per step
    device: str = 'cpu'  # or 'cuda'
    dtype: str = 'float32'  # or the dtype of torch.autocast, or 'tf32': products of float32 in TF32
    compile: bool = False  # by torch.compile with dynamic sizes
    memory_format: str = 'better'  # one of FORMATS, or the one that a few steps show to be faster
    threads: int = 0  # of PyTorch, OpenCV or onnxruntime on the CPU; 0 for their defaults
    with_cp: bool = False  # whether the backbone recomputes its layers in the backward pass
    prepare: str = ''  # 'module:function' that changes the built backbone in place
    busy: bool = False  # whether another process keeps one core busy during the steps
    images: tuple[str, ...] = ()  # the files of mode 'predict', in turn
    options: dict = field(default_factory=dict, hash=False)  # settings of the config to override
    label: str = ''  # the name in tables and plots, instead of the model's own

    @property
    def is_training(self) -> bool:
        """Whether a step includes the backward pass."""
        return self.mode in ('train', 'detector_train')

    @property
    def is_onnx(self) -> bool:
        """Whether the model is an ONNX file, which onnxruntime runs."""
        return Path(self.model).suffix == '.onnx'

    @property
    def name(self) -> str:
        """The name in tables and plots."""
        name, path = self.model, Path(self.model)
        if name in FAMILY_OF:
            name = f'{FAMILY_OF[name]}-{name.title().replace("_", "-")}'
        elif path.suffix == '.py':
            name = f'{path.parent.name}/{path.stem}'.lstrip('/')
        elif self.mode == 'predict':
            name = path.resolve().name  # of the file, or of the work directory
        extras = {
            PEERS.get(self.peer, '').split("'")[0]: self.peer,
            self.dtype: self.dtype != 'float32',
            'compiled': self.compile,
            'with_cp': self.with_cp and self.is_training,
            self.prepare.rpartition(':')[2]: self.prepare,
            'busy neighbour': self.busy,
        }
        return ', '.join([self.label or name, *(extra for extra, is_so in extras.items() if is_so)])


@dataclass(frozen=True)
class Result:
    """The figures of a contender."""

    contender: Contender
    seconds: tuple[float, ...]  # of each round's step
    # Those of its parts: waiting for data (end2end), backbone, neck and heads (detector), or input, model and output
    # (predict); else empty.
    parts: tuple[dict[str, float], ...]
    images: int  # per step
    gflops: float | None  # multiply-adds of a step in 1e9, as papers count; None where they are unknown
    peak_memory: float | None  # GB above what model and input take; None where the system does not say
    memory_format: str  # the one that was used
    # With mode 'predict':
    loaded_memory: float | None = None  # GB of the process when the model was loaded, which is not in `peak_memory`
    load_seconds: float | None = None  # from Python's start, without it, over imports to the loaded model
    megabytes: float | None = None  # of the model's file
    operators: dict[str, dict[str, float]] = field(
        default_factory=dict
    )  # seconds of each operator by kind, if profiled

    @property
    def total_memory(self) -> float | None:
        """The peak memory of the process in GB."""
        return None if None in (self.loaded_memory, self.peak_memory) else self.loaded_memory + self.peak_memory

    @property
    def p95(self) -> float:
        """The 95th percentile of the steps in seconds."""
        return float(np.quantile(self.seconds, 0.95))

    @property
    def median(self) -> float:
        """The median step in seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the interquartile range, as a share of the median."""
        if len(self.seconds) < 2:
            return 0.0
        first, _, third = statistics.quantiles(self.seconds, n=4, method='inclusive')
        return (third - first) / 2 / self.median

    @property
    def rate(self) -> float | None:
        """GFLOP/s, two for each multiply-add."""
        return None if self.gflops is None else 2 * self.gflops / self.median

    @property
    def kinds(self) -> dict[str, float]:
        """The seconds of all profiled operators of each kind."""
        return {kind: sum(times.values()) for kind, times in self.operators.items()}

    @property
    def part_medians(self) -> dict[str, float]:
        """The median seconds of each part."""
        return {name: statistics.median(parts[name] for parts in self.parts) for name in self.parts[0]}

    def ratio(self, other: 'Result') -> float:
        """How many times as long ``other`` takes: the median over the rounds."""
        return statistics.median(b / a for a, b in zip(self.seconds, other.seconds, strict=True))

    def summary(self) -> dict:
        """Returns the figures as the tool's last line has them, for JSON."""
        contender = asdict(self.contender)
        for name in ('options', 'label', 'images'):
            del contender[name]
        return {
            **contender,
            'name': self.contender.name,
            'threads': self.contender.threads or torch.get_num_threads(),
            'memory_format': self.memory_format,
            'median_s': round(self.median, 5),
            'spread': round(self.spread, 4),
            'rounds': len(self.seconds),
            'images_per_s': round(self.images / self.median, 3),
            'parts_s': {name: round(seconds, 5) for name, seconds in self.part_medians.items()},
            'gflops': self.gflops and round(self.gflops, 2),
            'gflop_per_s': self.rate and round(self.rate, 1),
            'peak_memory_gb': _rounded(self.peak_memory, 3),
            **(self._prediction() if self.contender.mode == 'predict' else {}),
        }

    def _prediction(self) -> dict:
        return {
            'p95_s': round(self.p95, 5),
            'total_memory_gb': _rounded(self.total_memory, 3),
            'load_s': _rounded(self.load_seconds, 2),
            'file_mb': _rounded(self.megabytes, 2),
            'operators_s': {kind: round(seconds, 5) for kind, seconds in self.kinds.items()},
        }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def table(results: Sequence[Result], product: Result | None = None) -> str:
    """Returns the table of contenders of the same number of rounds in Markdown, with shares of a product's rate."""
    rows = []
    for result in results:
        contender, cells = result.contender, {'model': result.contender.name}
        is_model = contender.mode != 'product'
        if is_model and contender.mode not in ('end2end', 'predict'):
            cells['size'] = ' x '.join(map(str, contender.shape))
        cells['ms'] = _milliseconds(result.median)
        cells |= {'p95 ms': _milliseconds(result.p95)} if contender.mode == 'predict' else {}
        cells |= {'+-': f'{result.spread:.1%}', 'x': f'{results[0].ratio(result):.2f}'}
        cells |= {f'{part} ms': f'{1000 * seconds:.0f}' for part, seconds in result.part_medians.items()}
        if is_model:
            cells['images/s'] = f'{result.images / result.median:.2f}'
            cells['peak GB'] = '' if result.peak_memory is None else f'{result.peak_memory:.2f}'
        if contender.mode == 'predict':
            figures = {'total GB': (result.total_memory, 2), 'load s': (result.load_seconds, 1)}
            figures['file MB'] = (result.megabytes, 1)
            cells |= {name: '' if value is None else f'{value:.{n}f}' for name, (value, n) in figures.items()}
        if result.rate:
            cells |= {'GFLOPs': f'{result.gflops:.1f}', 'GFLOP/s': f'{result.rate:.0f}'}
            cells |= {f'of {product.contender.model}': f'{result.rate / product.rate:.0%}'} if product else {}
        if is_model and contender.mode != 'predict':
            cells['format'] = result.memory_format
        rows.append(cells)
    head = list(dict.fromkeys(name for cells in rows for name in cells))
    return markdown([head, *([cells.get(name, '') for name in head] for cells in rows)])


def _milliseconds(seconds: float) -> str:
    return f'{1000 * seconds:.0f}' if seconds > 0.1 else f'{1000 * seconds:.2f}'


def operator_table(results: Sequence[Result]) -> str:
    """Returns the table of the profiled contenders' time by kind of operator, and a list of their operators."""
    spent: collections.Counter[str] = collections.Counter()
    for one in results:
        spent.update(one.kinds)
    rows = [['ms per image', *(one.contender.name for one in results)]]
    rows += [[kind, *(f'{1000 * one.kinds.get(kind, 0):.1f}' for one in results)] for kind, _ in spent.most_common()]
    rows.append(['all operators', *(f'{1000 * sum(one.kinds.values()):.1f}' for one in results)])
    lines = []
    for one in results:
        operators: collections.Counter[str] = collections.Counter()
        for times in one.operators.values():
            operators.update(times)
        shares = (f'{name} {seconds / operators.total():.0%}' for name, seconds in operators.most_common(8))
        lines.append(f'- {one.contender.name}: {", ".join(shares)}')
    return '\n'.join([markdown(rows), '', *lines])


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows of cells, the first one the head, as a table in Markdown."""
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    rule = ['-' * width if i == 0 else '-' * (width - 1) + ':' for i, width in enumerate(widths)]
    lines = []
    for first, *others in (rows[0], rule, *rows[1:]):
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def replace_section(text: str, heading: str, section: str) -> str:
    """Returns a document with one section replaced, or added at the end; the rest stays as it is."""
    head, *parts = re.split(r'^## (.*)\n', text, flags=re.MULTILINE)
    sections = dict(zip(parts[::2], parts[1::2], strict=True)) | {heading: f'\n{section}\n'}
    return '\n'.join([head.rstrip() + '\n', *(f'## {name}\n{body.rstrip()}\n' for name, body in sections.items())])
