"""A CUDA device for the tests, simulated where there is no GPU: devices, dtypes and shapes are true, values missing.

:func:`prepare` must run before torch is imported, and changes it for the whole process.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

SOURCE = Path(__file__).with_name('hooks.cpp')
CACHE = SOURCE.parents[2] / 'build' / 'simulated_cuda'


class NoDeviceError(Exception):
    """There is no GPU, and this PyTorch cannot be told that there is one."""


def prepare() -> bool:
    """Simulates a CUDA device if there is no GPU, and returns whether it did.

    Raises:
        NoDeviceError: The message says why.
    """
    assert 'torch' not in sys.modules
    folder = Path(next(iter(find_spec('torch').submodule_search_locations)))
    if any((folder / 'lib').glob('libtorch_cuda*')):
        import torch

        if not torch.cuda.is_available():
            raise NoDeviceError('this PyTorch is built for CUDA, and sees no GPU')
        return False
    library = _compile(folder)
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        raise NoDeviceError(f'{library} cannot be loaded: {error}') from None
    import torch

    torch.cuda.is_available = torch.cuda.is_bf16_supported = lambda *_, **__: True
    torch.cuda.device_count = lambda: 1
    torch.cuda.current_device = lambda: 0
    torch.cuda._lazy_init = torch.cuda.random._lazy_init = lambda: None
    torch.cuda.default_generators = (torch.Generator(),)
    from torch._subclasses.fake_tensor import FakeTensorMode

    FakeTensorMode.avoid_device_init = property(lambda _: True)
    return True


def _compile(folder: Path) -> Path:
    """Compiles the hooks for the PyTorch in ``folder``, once, and returns the library."""
    version = (folder / 'version.py').read_bytes()
    library = CACHE / f'{hashlib.sha256(SOURCE.read_bytes() + version + bytes(folder)).hexdigest()[:16]}.so'
    if library.exists():
        return library
    if not shutil.which('g++'):
        raise NoDeviceError('there is no g++ to compile the simulation')
    library.parent.mkdir(parents=True, exist_ok=True)
    temporary = library.with_suffix(f'.{os.getpid()}')
    torch = [f'-I{folder}/include', f'-L{folder}/lib', '-lc10', '-ltorch_cpu', f'-Wl,-rpath,{folder}/lib']
    standard = '-std=c++20' if b'2.1.' not in version else '-std=c++17'
    compiled = subprocess.run(
        ['g++', standard, '-O1', '-shared', '-fPIC', str(SOURCE), '-o', str(temporary), *torch],
        capture_output=True, text=True,
    )  # fmt: skip
    if compiled.returncode:
        raise NoDeviceError(f'the simulation does not compile for this PyTorch: {compiled.stderr.splitlines()[0]}')
    temporary.replace(library)
    return library
