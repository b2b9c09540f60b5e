"""``make test-gpu`` runs this folder with ``--device cuda``.

``make test`` runs the fast part of it on the CPU, with small models, and ``--device cpu`` all of it.
"""

import importlib
import os
from collections.abc import Callable

import pytest
import torch

from pvt_mm.analysis.benchmark.machine import gpu_facts, machine

os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # the profiler would print two lines at each use
FIGURES = pytest.StashKey[list]()


def pytest_addoption(parser):
    parser.addoption('--device', choices=('cuda', 'cpu'), help='run all tests of tests/gpu on this device')


def pytest_configure(config):
    config.addinivalue_line('markers', 'full: too slow for `make test`; runs with --device')
    if config.getoption('--device', None) == 'cuda' and not torch.cuda.is_available():
        pytest.exit('--device cuda: PyTorch finds no GPU here; tools/doctor.py says why', 2)


def pytest_collection_modifyitems(config, items):
    if config.getoption('--device', None) is None:
        slow = [item for item in items if item.get_closest_marker('full')]
        items[:] = [item for item in items if item not in slow]
        config.hook.pytest_deselected(items=slow)


def pytest_report_header(config):
    if config.getoption('--device', None) == 'cuda':
        facts = ', '.join(f'{name} {value}' for name, value in gpu_facts().items())
        return f'{torch.cuda.device_count()} x {machine("cuda")}, {facts}'
    return None


def pytest_terminal_summary(terminalreporter, config):
    figures = config.stash.get(FIGURES, [])
    if figures and config.getoption('--device', None):
        terminalreporter.section('measured')
        for line in figures:
            terminalreporter.line(line)


@pytest.fixture(scope='session')
def device(request) -> str:
    """The type of the device to test: 'cuda' or 'cpu'."""
    return request.config.getoption('--device', None) or 'cpu'


@pytest.fixture
def note(request) -> Callable[[str], None]:
    """Prints a line on what was measured after all tests."""
    return request.config.stash.setdefault(FIGURES, []).append


def need(module: str) -> None:
    """Skips a test if a module cannot be imported."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a wrong MMCV raises AssertionError, a wrong NumPy ValueError
        pytest.skip(f'not run: {module} cannot be imported: {error}')


def need_operators(device: str) -> None:
    """Skips a test if mmcv has no operators for the device."""
    need('mmcv.ops')
    if device == 'cuda':
        from mmcv.ops import get_compiling_cuda_version

        if get_compiling_cuda_version() == 'not available':
            pytest.skip("not run: mmcv's operators were compiled without CUDA")
