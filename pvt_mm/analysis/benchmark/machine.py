"""The processor that a benchmark runs on."""

import contextlib
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import torch

# By family, and by model in sixteens where a family has two.
AMD_GENERATIONS = {25: 'Zen 3', 26: 'Zen 5', **{(25, sixteen): 'Zen 4' for sixteen in (1, 6, 7, 10)}}

# That multiply in 8 bits, by Linux's flag, the best first. AVX2's sums of two products saturate.
INT8_INSTRUCTIONS = {
    'amx_int8': 'AMX',
    'avx512_vnni': 'AVX512-VNNI',
    'avx_vnni': 'AVX-VNNI',
    'avx2': 'AVX2',
    'asimddp': 'dot products',
}


class Processor(NamedTuple):
    """A processor."""

    name: str  # with family and model, where Linux tells them
    vendor: str  # 'AMD', 'Intel', 'NVIDIA' or ''
    multiplies_bf16: bool


def find_processor(device: str) -> Processor:
    """Returns the processor of a device, 'cpu' or 'cuda'."""
    if device == 'cuda':
        return Processor(torch.cuda.get_device_name(), 'NVIDIA', True)
    facts = _cpu_facts()
    name = facts.get('model name') or platform.processor() or platform.machine()
    flags = _flags(facts)
    vendor = next((vendor for vendor in ('AMD', 'Intel') if vendor in facts.get('vendor_id', '')), '')
    if 'cpu family' in facts and 'model' in facts:
        family, model = int(facts['cpu family']), int(facts['model'])
        name += f', family {family}, model {model}'
        zen = AMD_GENERATIONS.get((family, model // 16), AMD_GENERATIONS.get(family)) if vendor == 'AMD' else None
        name += f' ({zen})' if zen else ' (AMX)' if 'amx_tile' in flags else ''
    return Processor(name, vendor, not {'avx512_bf16', 'amx_bf16', 'bf16'}.isdisjoint(flags))


def _cpu_facts() -> dict[str, str]:
    with contextlib.suppress(OSError):
        return dict(re.findall(r'^(.*?)\s*: (.*)$', Path('/proc/cpuinfo').read_text(), re.MULTILINE))
    return {}


def _flags(facts: dict[str, str]) -> list[str]:
    return facts.get('flags', facts.get('Features', '')).split()


def int8_instructions() -> str:
    """Returns the best of the CPU's instructions that multiply in 8 bits; speed and rounding of int8 depend on them."""
    flags = _flags(_cpu_facts())
    return next((name for flag, name in INT8_INSTRUCTIONS.items() if flag in flags), 'unknown instructions')


def machine(device: str) -> str:
    """Returns one line about the machine: processor, cores, instruction set, PyTorch's version."""
    name = find_processor(device).name
    if device == 'cuda':
        return f'{name}, torch {torch.__version__}'
    return f'{name}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}'


def gpu_facts() -> dict[str, str]:
    """Returns what figures of a GPU depend on: its memory, the driver, and the versions of the libraries."""
    facts = {
        'memory': f'{torch.cuda.get_device_properties(0).total_memory / 1e9:.0f} GB',
        'driver': _first_line('nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader'),
        'torch': torch.__version__,
        'CUDA': torch.version.cuda or '',
        'cuDNN': str(torch.backends.cudnn.version()),
    }
    try:
        from mmcv.ops import get_compiling_cuda_version

        return facts | {"mmcv's CUDA": get_compiling_cuda_version()}
    except Exception as error:  # a missing one, or one that does not fit this torch
        return facts | {"mmcv's CUDA": f'none ({type(error).__name__})'}


def _first_line(*command: str) -> str:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        lines = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()
        return lines[0].strip() if lines else 'unknown'
    return 'unknown'
