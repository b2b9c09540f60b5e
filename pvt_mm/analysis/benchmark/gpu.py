"""The benchmark of a GPU: what ``make bench-gpu`` measures within a time limit, and its report.

Contenders are measured one after another in one process. What fails, for lack of memory for example, is reported, and
the others go on.
"""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch

from pvt_mm.analysis.benchmark.attention import attention_kernels, time_new_sizes
from pvt_mm.analysis.benchmark.contender import Contender, Result, markdown, table
from pvt_mm.analysis.benchmark.measure import measure_here
from pvt_mm.analysis.benchmark.models import build
from pvt_mm.utils.errors import WRONG_CONFIG
from pvt_mm.utils.text import shorten

EXPECTED_SHAPE = (800, 1344)
# In bfloat16 on an H200, from what `python -m tests.simulated_cuda.counts` prints, measured nowhere. Times of ours are
# its bytes / 4.8 TB/s. Ratios are of such times: the lower one at batch 16 adds the multiply-adds (144e9 an image
# forward, twice that backward) at 989 TFLOP/s, that at batch 2 takes 10 us for each kernel where its bytes take less.
# Peak memory is the saved activations, the parameters, their gradients and the images.
EXPECTED = {
    'training, batch 16: MMDetection / ours': '3.1 to 3.9',
    'training, batch 2: MMDetection / ours': '1.5 to 3.8',
    'peak memory, batch 16: ours / MMDetection': '0.23',
    'forward, batch 16, ours: ms': '13.9 or more',
    'training, batch 16, ours: ms': '39.5 or more',
    'peak memory, batch 16, ours: GB': '16.8 or more',
}
FLOAT32 = ('float32', 'tf32')
# Members of torch.nn.attention.SDPBackend, and what tables call them.
BACKENDS = {'': "PyTorch's choice", 'FLASH_ATTENTION': 'flash', 'CUDNN_ATTENTION': 'cuDNN'}


class Group(NamedTuple):
    """The contenders of a table, by key."""

    contenders: dict[str, Contender]
    seconds: float = 8.0  # that each takes on an H200: it is not begun with less time left


@dataclass
class Benchmark:
    """A benchmark of one device.

    Args:
        device: ``cuda``, or ``cpu`` to try the benchmark itself.
        shape: (H, W) of an image in pixels.
        batches: A small and a large number of images per step.
        rounds: Steps of each contender.
        budget: Seconds from now after which nothing is begun, and what runs is stopped.
        configs: Paths of detectors by key; that of ``pvt`` is also run with MMDetection's backbone.
        tell: Called with a line on each result.
    """

    device: str
    shape: tuple[int, int]
    batches: tuple[int, int]
    rounds: int
    budget: float
    configs: dict[str, str]
    tell: Callable[[str], None] = print
    # What is measured.
    begin: float = field(default_factory=time.monotonic)
    results: dict[str, dict[str, Result]] = field(default_factory=dict)  # by group and key
    products: dict[str, Result | None] = field(default_factory=dict)  # matrix products, by dtype
    attention: dict[str, list] = field(default_factory=dict)  # a kernel for each stage, by model and dtype
    new_sizes: dict[str, Any] = field(default_factory=dict)  # by backend
    not_run: dict[str, str] = field(default_factory=dict)  # what was not measured, and why

    def run(self) -> None:
        """Measures everything; compiled models last, since compiling takes minutes."""
        train = self._train()
        for arch in ('small', 'small_wide', 'b2', 'b2_li'):
            model, _ = build(replace(train, model=arch))
            for dtype in ('bfloat16', 'float16', 'float32'):
                contender = replace(train, model=arch, batch=1, dtype=dtype)
                found = self._attempt(f'attention, {contender.name}', 5.0, attention_kernels, model, contender)
                if found:
                    self.attention[contender.name] = found
        plan = self.plan()
        for title, group in plan.items():
            if 'compiled' not in title:
                self._measure(title, group)
        for i, (backend, name) in enumerate(BACKENDS.items()):
            # Widths differ between the backends, since one may have kept what another has planned.
            sizes = replace(train, shape=(self.shape[0], self.shape[1] - 32 * i))
            found = self._attempt(f'new sizes, {name}', 20.0, time_new_sizes, sizes, backend)
            if found:
                self.new_sizes[name] = found
                self.tell(f'new sizes, {name}: {1000 * found.first:.1f} ms, then {1000 * found.second:.1f} ms')
        for title, group in plan.items():
            if 'compiled' in title:
                self._measure(title, group)

    def plan(self) -> dict[str, Group]:
        """Returns the groups by title, in the order in which they are measured."""
        few, many = self.batches
        train = self._train()
        groups = {f'Forward, batch {many}': _with_peer(replace(train, mode='forward', batch=many))}
        for batch in (many, few):
            ours = replace(train, batch=batch)
            groups[f'Training, batch {batch}'] = _with_peer(ours)
            groups[f'Training, batch {batch}'].contenders['with_cp'] = replace(ours, with_cp=True)
        for dtype in FLOAT32:
            groups[f'Training, batch {few}, {dtype}'] = _with_peer(replace(train, dtype=dtype))
        groups[f'PVTv2-B2, training, batch {many}'] = _with_peer(replace(train, model='b2', batch=many))
        detectors = {key: replace(train, model=path, mode='detector_train') for key, path in self.configs.items()}
        detectors['mmdet'] = replace(detectors['pvt'], peer='mmdet')
        groups[f'RetinaNet, training, batch {few}'] = Group(detectors)
        for batch in (many, few):
            # To try both memory formats would compile each model three times.
            compiled = replace(train, batch=batch, compile=True, memory_format='contiguous')
            groups[f'Training, compiled, batch {batch}'] = _with_peer(compiled, 80.0)
        return groups

    def _train(self) -> Contender:
        return Contender('small', self.shape, 'train', batch=self.batches[0], device=self.device, dtype='bfloat16')

    def _measure(self, title: str, group: Group) -> None:
        self.results[title] = {}
        for key, contender in group.contenders.items():
            if contender.dtype not in self.products:
                product = Contender('torch.mm', (0, 0), 'product', device=self.device, dtype=contender.dtype)
                self.products[contender.dtype] = self._attempt(product.name, 2.0, measure_here, product, self.rounds)
            if contender.compile:
                torch.compiler.reset()  # what was compiled for earlier models counts towards a limit
            what = f'{title}: {contender.name}'
            result = self._attempt(what, group.seconds, measure_here, contender, self.rounds)
            if result is not None:
                self.results[title][key] = result
                self.tell(f'{what}: {1000 * result.median:.1f} ms')

    def _attempt(self, what: str, seconds: float, function: Callable, *args: Any) -> Any:
        """Returns what a function returns; None, and a note, if it fails or if there is no time for it."""
        left = self.begin + self.budget - time.monotonic()
        if left < seconds:
            self.not_run[what] = f'no time left of {self.budget:.0f} s'
        else:
            try:
                with _time_limit(left):
                    return function(*args)
            except (*WRONG_CONFIG, RuntimeError) as error:  # only its text is kept: its frames hold memory
                message = shorten([error]).removeprefix(f'{what.rpartition(": ")[2]}: ')
                self.not_run[what] = 'out of memory' if 'out of memory' in str(error) else message
        self.tell(f'{what}: not run: {self.not_run[what]}')
        return None

    def report(self) -> str:
        """Returns the sections of the report, in Markdown."""
        is_expected = self.device == 'cuda' and self.shape == EXPECTED_SHAPE
        rows = [['figure', 'expected', 'measured']]
        for what, value in self.figures().items():
            expected = EXPECTED.get(what, '') if is_expected else ''
            rows.append([what, expected, 'not measured' if value is None else f'{value:.2f}'])
        sections = [markdown(rows)]
        rows = [['model', *(f'stage {i}' for i in range(1, 5))]]
        rows += [[name, *(one.backend for one in kernels)] for name, kernels in self.attention.items()]
        sections.append(f'### Attention kernels that PyTorch chooses in training\n\n{markdown(rows)}')
        rows = [['attention', 'first step at a size, ms', 'second, ms', 'difference, ms']]
        for name, (first, second) in self.new_sizes.items():
            rows.append([name, *(f'{1000 * seconds:.1f}' for seconds in (first, second, first - second))])
        sections.append(f'### Training at new sizes, batch {self.batches[0]}\n\n{markdown(rows)}')
        for title, results in self.results.items():
            if results:
                one, *_ = results.values()
                product = self.products[one.contender.dtype]
                rows = [*results.values(), *([product] if product else [])]
                sections.append(f'### {title}\n\n{table(rows, product)}')
        if self.not_run:
            reasons: dict[str, list[str]] = {}
            for what, why in self.not_run.items():
                reasons.setdefault(why, []).append(what)
            lines = (f'- {why}: {"; ".join(what)}' for why, what in reasons.items())
            sections.append('### Not run\n\n' + '\n'.join(lines))
        return '\n\n'.join(sections)

    def figures(self) -> dict[str, float | None]:
        """Returns the figures of what was measured; None where a contender was not."""
        few, many = self.batches
        figures = {}
        for batch in (many, few):
            name, peak = f'training, batch {batch}', f'peak memory, batch {batch}'
            ours, mmdet, with_cp = ((f'Training, batch {batch}', key) for key in ('ours', 'mmdet', 'with_cp'))
            compiled, mmdet_compiled = ((f'Training, compiled, batch {batch}', key) for key in ('ours', 'mmdet'))
            figures |= {
                f'{name}: MMDetection / ours': self._ratio(mmdet, ours),
                f'{name}, both compiled: MMDetection / ours': self._ratio(mmdet_compiled, compiled),
                f'{name}, ours: eager / compiled': self._ratio(ours, compiled),
                f'{name}, ours: with_cp / without': self._ratio(with_cp, ours),
                f'{peak}: ours / MMDetection': self._ratio(ours, mmdet, 'peak_memory'),
                f'{peak}: ours with_cp / MMDetection': self._ratio(with_cp, mmdet, 'peak_memory'),
            }
        v2, mmdet_v2 = ((f'PVTv2-B2, training, batch {many}', key) for key in ('ours', 'mmdet'))
        ours, forward = (f'Training, batch {many}', 'ours'), (f'Forward, batch {many}', 'ours')
        retinanet, small = f'RetinaNet, training, batch {few}', f'Training, batch {few}'
        figures |= {
            f'forward, batch {many}, ours: ms': self._figure(*forward, scale=1000),
            f'training, batch {many}, ours: ms': self._figure(*ours, scale=1000),
            f'peak memory, batch {many}, ours: GB': self._figure(*ours, 'peak_memory'),
            f'RetinaNet, training, batch {few}: PVT-S / ResNet-50': self._ratio((retinanet, 'pvt'), (retinanet, 'r50')),
            f'RetinaNet, training, batch {few}: MMDetection / ours': self._ratio(
                (retinanet, 'mmdet'), (retinanet, 'pvt')
            ),
        }
        figures[f'PVTv2-B2, training, batch {many}: MMDetection / ours'] = self._ratio(mmdet_v2, v2)
        figures[f'PVTv2-B2, peak memory, batch {many}: ours / MMDetection'] = self._ratio(v2, mmdet_v2, 'peak_memory')
        for dtype in FLOAT32:
            slower = f'training, batch {few}, ours: {dtype} / bfloat16'
            figures[slower] = self._ratio((f'{small}, {dtype}', 'ours'), (small, 'ours'))
        return figures

    def _ratio(self, above: tuple[str, str], below: tuple[str, str], name: str = 'median') -> float | None:
        figures = self._figure(*above, name), self._figure(*below, name)
        return figures[0] / figures[1] if all(figures) else None

    def _figure(self, title: str, key: str, name: str = 'median', scale: float = 1.0) -> float | None:
        result = self.results.get(title, {}).get(key)
        figure = result and getattr(result, name)
        return None if figure is None else scale * figure


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raises a TimeoutError in the main thread after so many seconds, while a model compiles for example."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f'not finished after {seconds:.0f} s')

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _with_peer(ours: Contender, seconds: float = 8.0) -> Group:
    return Group({'ours': ours, 'mmdet': replace(ours, peer='mmdet')}, seconds)
