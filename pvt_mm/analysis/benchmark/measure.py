"""Contenders measured in turns, each in a process of its own.

So each peak memory is of one model only, and whatever else slows the machine down slows all of them: they take a step
each per round while the others wait, and ratios are medians over the rounds.
"""

import collections
import contextlib
import gc
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.progress import Progress
from torch.profiler import ProfilerActivity, profile

from pvt_mm.analysis.benchmark import onnx_file
from pvt_mm.analysis.benchmark.contender import Contender, Result
from pvt_mm.analysis.benchmark.models import Prepared, prepare, synchronize
from pvt_mm.analysis.benchmark.process import peak_memory, start, used_memory
from pvt_mm.utils.errors import InputError, config_errors


def measure(contenders: Sequence[Contender], rounds: int, profiled: bool = False) -> list[Result]:
    """Measures a step of each contender per round, after one to warm up, and shows the progress on stderr.

    Those that differ only in ``busy`` share a process. With mode ``predict`` all take the same image in a round, the
    first one to warm up, and with ``profiled`` they are profiled after the last round, on the images of all rounds.

    Raises:
        InputError: A contender cannot be built or run; the message names it.
    """
    workers, facts = {}, {}
    steps: list[list[tuple]] = [[] for _ in contenders]
    quiet = [replace(contender, busy=False) for contender in contenders]
    console = Console(stderr=True)
    with Progress(console=console, transient=True) as progress, contextlib.ExitStack() as stack:
        if not console.is_terminal:
            names = ', '.join(contender.name for contender in contenders)
            console.print(f'measuring {names}', highlight=False, soft_wrap=True)
        task = progress.add_task('', total=len(contenders) * (1 + rounds))
        for contender, key in zip(contenders, quiet, strict=True):
            progress.update(task, description=f'building {contender.name}')
            if key not in workers:
                context = multiprocessing.get_context('spawn')
                workers[key] = stack.enter_context(ProcessPoolExecutor(1, context, start))
                with _without_main():
                    facts[key] = _call(workers[key], _build, key)
            progress.advance(task)
        for i in range(rounds):
            for contender, key, taken in zip(contenders, quiet, steps, strict=True):
                progress.update(task, description=contender.name)
                with busy_neighbour() if contender.busy else contextlib.nullcontext():
                    taken.append(_call(workers[key], _step, key, i))
                progress.advance(task)
        if profiled:
            for key in workers:
                progress.update(task, description=f'profiling {key.name}')
                facts[key]['operators'] = _call(workers[key], _profile, key, rounds)
    results = []
    for contender, key, taken in zip(contenders, quiet, steps, strict=True):
        seconds, parts, peaks = zip(*taken, strict=True)
        peak = None if None in peaks else max(peaks)
        results.append(Result(contender, seconds, parts, peak_memory=peak, **facts[key]))
    return results


def measure_here(contender: Contender, rounds: int) -> Result:
    """Measures a contender alone, in this process, after three steps to warm up: for a GPU, which counts its memory.

    Raises:
        InputError: The contender cannot be built or run, or there is too little memory.
    """
    gc.collect()  # what an earlier one left, even if it failed
    if contender.device == 'cuda':
        torch.cuda.empty_cache()
    with config_errors(contender.name, RuntimeError):
        prepared = prepare(contender)
        for _ in range(3):
            prepared.step()
        synchronize(contender.device)
        used_memory(contender.device)
        seconds, parts, peaks = zip(*(_time(prepared, contender.device) for _ in range(rounds)), strict=True)
    peak = None if None in peaks else max(peaks)
    return Result(contender, seconds, parts, prepared.images, prepared.gflops, peak, prepared.memory_format)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Keeps a process that is started from importing the tool that runs, and with it PyTorch."""
    with mock.patch.object(sys.modules['__main__'], '__file__', None, create=True):
        yield


def _call(worker: ProcessPoolExecutor, function: Callable, contender: Contender, *args: int) -> Any:
    task: Any = contender
    if contender.is_onnx:  # neither its function nor its argument may import PyTorch
        function = {_build: onnx_file.build, _step: onnx_file.step, _profile: onnx_file.profile}[function]
        task = onnx_file.OnnxFile(contender.name, contender.model, contender.images, contender.threads)
    try:
        return worker.submit(function, task, *args).result()
    except BrokenProcessPool:
        smaller = 'smaller --images' if contender.mode == 'predict' else 'a smaller --shape or --batch'
        what = f'its process died, perhaps for lack of memory: try {smaller}'
        raise InputError(f'{contender.name}: {what}') from None


# Pinned, so that the scheduler cannot spread its work over all cores.
SPIN = """
import os
if hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
print(flush=True)
while True:
    pass
"""


@contextlib.contextmanager
def busy_neighbour() -> Iterator[None]:
    """Keeps one core busy with another process."""
    process = subprocess.Popen([sys.executable, '-S', '-c', SPIN], stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.communicate()


# What follows runs in the process of a contender.

_prepared: list = []


def _build(contender: Contender) -> dict[str, Any]:
    """Builds a contender, runs a step to warm up, and returns the fields of :class:`Result` that stay the same."""
    if contender.threads:
        torch.set_num_threads(contender.threads)
    with config_errors(contender.name, RuntimeError):
        prepared = prepare(contender)
        prepared.step()
    used_memory(contender.device)  # the peaks of compiling and of trying formats are not the steps'
    _prepared.append(prepared)
    facts = {name: getattr(prepared, name) for name in ('images', 'gflops', 'memory_format')}
    return facts | (prepared.loaded._asdict() if prepared.loaded else {})


def _step(contender: Contender, i: int) -> tuple[float, dict[str, float], float | None]:
    """Runs the step of round ``i``: its seconds, those of its parts, and the peak memory so far in GB."""
    (prepared,) = _prepared
    with config_errors(contender.name, RuntimeError):
        return _time(prepared, contender.device, *((i,) if contender.mode == 'predict' else ()))


def _time(prepared: Prepared, device: str, *image: int) -> tuple[float, dict[str, float], float | None]:
    start = time.perf_counter()
    parts = prepared.step(*image)
    synchronize(device)
    seconds = time.perf_counter() - start
    peak = peak_memory(device)
    return seconds, parts, None if None in (peak, prepared.memory) else (peak - prepared.memory) / 1e9


# PyTorch's operators on a CPU by kind, as its profiler names them.
KINDS = {
    'linear layers': ('aten::addmm', 'aten::mm', 'aten::bmm', 'aten::mkldnn_linear'),
    'convolutions': ('aten::mkldnn_convolution', 'aten::_slow_conv2d_forward', 'aten::convolution_backward'),
    'depthwise convolutions': (),  # the same operators, told by their shapes
    'attention': (  # without _for_cpu in torch 2.1
        'aten::_scaled_dot_product_flash_attention_for_cpu',
        'aten::_scaled_dot_product_flash_attention_for_cpu_backward',
        'aten::_scaled_dot_product_flash_attention',
        'aten::_scaled_dot_product_flash_attention_backward',
        'aten::_softmax',
    ),
    'GELU': ('aten::gelu', 'aten::gelu_backward'),
    'norms': (
        'aten::native_layer_norm',
        'aten::native_layer_norm_backward',
        'aten::native_batch_norm',
        'aten::native_group_norm',
    ),
    'additions': ('aten::add', 'aten::add_'),
    'copies': ('aten::copy_', 'aten::cat'),
}


# And of whole models.
MORE_KINDS = {
    'resampling': (
        'aten::upsample_bilinear2d',
        'aten::upsample_nearest2d',
        'aten::grid_sampler_2d',
        'RoIAlignFunction',
    ),
    'NMS, sorting': ('NMSop', 'aten::sort', 'aten::topk', 'aten::nonzero', 'aten::index'),
}


def time_by_kind(contender: Contender) -> dict[str, float]:
    """Returns the shares of a step's time on the CPU by kind of operator: those of ``KINDS``, and 'other'."""
    step = prepare(contender).step
    step()
    times = {kind: sum(times.values()) for kind, times in _operators(step, KINDS).items()}
    total = sum(times.values())
    return {kind: times.get(kind, 0.0) / total for kind in (*KINDS, 'other')}


def _profile(contender: Contender, count: int) -> dict[str, dict[str, float]]:
    """Returns the seconds per image of each operator by kind, of ``count`` predictions."""
    (prepared,) = _prepared
    found = _operators(lambda: [prepared.step(i) for i in range(count)], KINDS | MORE_KINDS)
    return {kind: {name: seconds / count for name, seconds in times.items()} for kind, times in found.items()}


def _operators(run: Callable[[], Any], kinds: dict[str, tuple[str, ...]]) -> dict[str, dict[str, float]]:
    """Returns the seconds that each operator of PyTorch takes on the CPU, by kind."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        run()
    kind_of = {name: kind for kind, names in kinds.items() for name in names}
    spent: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for event in recorded.key_averages(group_by_input_shape=True):
        is_depthwise = event.key in KINDS['convolutions'] and [1, 3, 3] in (shape[1:] for shape in event.input_shapes)
        kind = 'depthwise convolutions' if is_depthwise else kind_of.get(event.key, 'other')
        spent[kind][event.key] += event.self_cpu_time_total / 1e6
    return {kind: dict(times) for kind, times in spent.items()}
