"""The process of a contender: its cores, start, memory and the parts of a prediction. Nothing imports PyTorch."""

import contextlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PARTS = ('input', 'model', 'output')  # of a prediction: reading and preprocessing; the model; objects of its outputs
_started = time.perf_counter()


def start() -> None:
    """Begins a process: counts its age from here, and drops messages of models, which would break the progress bar."""
    global _started
    _started = time.perf_counter()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)


def age() -> float:
    """Returns the seconds since :func:`start`: Python runs by then, and no library has been imported."""
    return time.perf_counter() - _started


def available_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def used_memory(device: str) -> float | None:
    """Returns the bytes in use, and makes :func:`peak_memory` forget what was before. On a CPU only Linux says them."""
    if device == 'cuda':
        import torch

        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with contextlib.suppress(OSError):
        Path('/proc/self/clear_refs').write_text('5')
    return _process_memory('VmRSS')


def peak_memory(device: str) -> float | None:
    """Returns the most bytes in use since :func:`used_memory` was called."""
    if device == 'cuda':
        import torch

        return torch.cuda.max_memory_allocated()
    return _process_memory('VmHWM')


def _process_memory(field: str) -> float | None:
    with contextlib.suppress(OSError):
        found = re.search(rf'{field}:\s+(\d+)', Path('/proc/self/status').read_text())
        return 1024.0 * int(found.group(1)) if found else None
    return None


class Stopwatch:
    """Times the parts of a prediction, of which the middle one is a function that :meth:`around` wraps."""

    def __init__(self):
        self.times = [0.0, 0.0]

    def around(self, function: Callable) -> Callable:
        """Returns a function that calls another one and remembers when it began and when it ended."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.times = [began, time.perf_counter()]

        return timed

    def parts(self, predict: Callable[[], Any]) -> dict[str, float]:
        """Calls ``predict``, which calls the wrapped function once, and returns the seconds of :data:`PARTS`."""
        start = time.perf_counter()
        predict()
        times = [start, *self.times, time.perf_counter()]
        return {part: end - begin for part, begin, end in zip(PARTS, times, times[1:], strict=False)}
