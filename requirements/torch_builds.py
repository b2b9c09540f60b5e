"""Chooses the build of PyTorch that fits this machine's GPUs, driver and CUDA compiler.

    python3 requirements/torch_builds.py auto|cpu|VERSION

Called by tools/install.sh before anything is installed, so with the standard library only. It prints assignments for
the shell, or one line with what is wrong and exit code 2:

    cuda    CUDA version of the build, `cpu`, or nothing if there is no GPU and pip may choose
    torch   what pip installs
    index   where pip looks for it besides PyPI
    wheels  where mmcv may be had compiled
    nvcc    version of the CUDA compiler, if it can compile mmcv for this build
    archs   GPUs to compile mmcv for, as TORCH_CUDA_ARCH_LIST
    gpus    what was found on this machine, nothing if there is no GPU
"""

import glob
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple


class Build(NamedTuple):
    """A build of PyTorch for a CUDA version.

    Attributes:
        driver: The oldest driver for Linux: NVIDIA's minimum for any toolkit of that major version.
        gpus: The lowest compute capability, and the highest major version of one.
        on_pypi: It is what PyPI has. Others come from PyTorch's own index.
        has_mmcv: mmcv's authors publish the version in mmcv.txt compiled for it (x86-64).
    """

    cuda: str
    torch: str
    driver: int
    gpus: tuple[float, int]
    on_pypi: bool = False
    has_mmcv: bool = False


# The first that fits is chosen. Sources: PyTorch's release matrix and release notes, NVIDIA's table of minor version
# compatibility, and the versions that mmcv's documentation lists. 2.13.0 is the version in torch.txt.
BUILDS = (
    Build('13.0', '2.13.0', driver=580, gpus=(7.5, 12), on_pypi=True),
    Build('12.6', '2.13.0', driver=525, gpus=(5.0, 9)),
    Build('12.8', '2.8.0', driver=525, gpus=(7.5, 12), has_mmcv=True),
    Build('11.8', '2.7.1', driver=450, gpus=(5.0, 9)),
)
TORCH_INDEX = os.environ.get('TORCH_INDEX') or 'https://download.pytorch.org/whl'
MMCV_INDEX = os.environ.get('MMCV_INDEX')
MMCV_WHEELS = 'https://mmwheels.onedl.ai/{tag}-torch{torch}/index.html'


class Gpus(NamedTuple):
    """What nvidia-smi says: the driver's version, the CUDA version that it supports, and the compute capabilities."""

    driver: str
    cuda: str
    capabilities: list[str]

    def __str__(self) -> str:
        return f'driver {self.driver} (CUDA {self.cuda}), {" ".join(map(sm, self.capabilities)) or "unknown GPUs"}'


class CannotChooseError(Exception):
    """No build fits; the message says what to do."""


def sm(capability: str) -> str:
    """Returns '9.0' as 'sm_90'."""
    return 'sm_' + capability.replace('.', '')


def major(version: str) -> int:
    """Returns the first number of a version."""
    return int(version.split('.')[0])


def output(*command: str) -> str | None:
    """Returns what a command prints, None if it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout


def find_gpus() -> Gpus | None:
    """Asks nvidia-smi; None if there is no GPU.

    Raises:
        CannotChooseError: There is one, but nvidia-smi does not work.
    """
    query = ('--query-gpu=driver_version', '--format=csv,noheader')
    drivers = re.findall(r'^\d[\d.]*', output('nvidia-smi', *query) or '', re.MULTILINE)
    if not drivers:
        devices = sorted(glob.glob('/dev/nvidia[0-9]*'))
        if devices:
            raise CannotChooseError(
                f'{devices[0]} exists, but nvidia-smi does not show a GPU: repair the driver, or set '
                f'CUDA= to the version for it ({versions()}), or CUDA=cpu'
            )
        return None
    banner = re.search(r'CUDA (?:UMD )?Version: *([\d.]+)', output('nvidia-smi') or '')
    cuda = banner[1] if banner else next((build.cuda for build in BUILDS if major(drivers[0]) >= build.driver), '10')
    # Drivers before R510 do not know compute_cap.
    capabilities = output('nvidia-smi', '--query-gpu=compute_cap', '--format=csv,noheader') or ''
    return Gpus(drivers[0], cuda, sorted(set(re.findall(r'^\d+\.\d+', capabilities, re.MULTILINE)), key=float))


def find_nvcc() -> str | None:
    """Returns the version of the nvcc that PyTorch would compile with, which looks in the same places."""
    home = os.environ.get('CUDA_HOME') or os.environ.get('CUDA_PATH')
    program = f'{home}/bin/nvcc' if home else shutil.which('nvcc') or '/usr/local/cuda/bin/nvcc'
    release = re.search(r'release (\d+\.\d+)', output(program, '--version') or '')
    return release[1] if release else None


def versions() -> str:
    """Returns the CUDA versions to choose from."""
    return ', '.join(build.cuda for build in BUILDS)


def runs(build: Build, gpus: Gpus) -> bool:
    """Returns whether the driver and the GPUs can run a build."""
    return all(covers(build, each) for each in gpus.capabilities) and major(gpus.cuda) >= major(build.cuda)


def covers(build: Build, capability: str) -> bool:
    """Returns whether a build is for GPUs of a compute capability."""
    lowest, highest = build.gpus
    return float(capability) >= lowest and major(capability) <= highest


def check_archs(archs: str, build: Build) -> None:
    """Checks TORCH_CUDA_ARCH_LIST, which is separated by semicolons or spaces.

    Raises:
        CannotChooseError: It is no list of compute capabilities, or has one that the build is not for.
    """
    for arch in archs.replace(';', ' ').split():
        capability = re.fullmatch(r'(\d+\.\d)[af]?(\+PTX)?', arch)
        if not capability:
            raise CannotChooseError(
                f"TORCH_CUDA_ARCH_LIST={archs}: '{arch}' is no compute capability: set it to such as 9.0, or '8.0;9.0'"
            )
        if not covers(build, capability[1]):
            lowest, highest = build.gpus
            others = ' or '.join(f'CUDA={each.cuda}' for each in BUILDS if covers(each, capability[1]))
            raise CannotChooseError(
                f'TORCH_CUDA_ARCH_LIST={archs}: CUDA={build.cuda} is for GPUs from {sm(str(lowest))} to sm_{highest}x, '
                f'not {sm(capability[1])}: ' + (f'set {others}, or leave {arch} out' if others else f'leave {arch} out')
            )


def wheels(build: Build) -> str:
    """Returns where mmcv may be had compiled for a build, or nothing."""
    if MMCV_INDEX or not build.has_mmcv or platform.machine() != 'x86_64':
        return MMCV_INDEX or ''
    return MMCV_WHEELS.format(tag=tag(build), torch=build.torch.replace('.', ''))


def tag(build: Build) -> str:
    """Returns '12.6' as 'cu126'."""
    return 'cu' + build.cuda.replace('.', '')


def can_have_mmcv(build: Build, nvcc: str | None) -> bool:
    """Returns whether mmcv can be compiled for a build, or had compiled."""
    return bool(wheels(build)) or (nvcc is not None and major(nvcc) == major(build.cuda))


def choose(request: str, gpus: Gpus | None, nvcc: str | None) -> Build | None:
    """Returns the build for a request, which is ``auto`` or a CUDA version; None if there is no GPU to choose it for.

    Raises:
        CannotChooseError: None can run here, or mmcv cannot be compiled for it.
    """
    fitting = [build for build in BUILDS if gpus is None or runs(build, gpus)]
    if request == 'auto':
        if gpus is None:
            return None
        if not fitting:
            newest = BUILDS[0]
            raise CannotChooseError(
                f'{gpus}: none of the builds of PyTorch in requirements/torch_builds.py runs with it: '
                f'update the driver ({newest.driver} or newer), or set CUDA=cpu'
            )
        build = next((each for each in fitting if can_have_mmcv(each, nvcc)), fitting[0])
    else:
        build = next((each for each in BUILDS if each.cuda == request), None)
        if build is None:
            raise CannotChooseError(
                f'CUDA={request} is not auto, cpu or one of {versions()} (any nvcc of the same major '
                'version compiles for it)'
            )
        if build not in fitting:
            advice = ' or '.join(f'CUDA={each}' for each in [*(each.cuda for each in fitting), 'cpu'])
            lowest, highest = build.gpus
            raise CannotChooseError(
                f'CUDA={request} needs driver {build.driver} or newer and GPUs from {sm(str(lowest))} '
                f'to sm_{highest}x, and this machine has {gpus}: set {advice}'
            )
    if not can_have_mmcv(build, nvcc):
        found = f'nvcc is of CUDA {nvcc}' if nvcc else 'there is no nvcc'
        raise CannotChooseError(
            f'mmcv has to be compiled for CUDA {build.cuda}, and {found}: install the toolkit of CUDA '
            f'{major(build.cuda)}, load its module or set CUDA_HOME= to it; or set CUDA=cpu'
        )
    return build


def plan(request: str) -> dict[str, str]:
    """Returns the assignments that the head of this file lists."""
    version = re.search(r'^torch==(.+)$', (Path(__file__).parent / 'torch.txt').read_text(), re.MULTILINE)[1]
    pinned = f'torch=={version}'
    nothing = dict.fromkeys(('index', 'wheels', 'nvcc', 'archs', 'gpus'), '')
    if request == 'cpu':
        return nothing | {'cuda': 'cpu', 'torch': f'{pinned}+cpu', 'index': f'{TORCH_INDEX}/cpu'}
    try:
        gpus = find_gpus()
    except CannotChooseError:
        if request == 'auto':
            raise
        gpus = None
    nvcc = find_nvcc()
    build = choose(request, gpus, nvcc)
    if build is None:
        return nothing | {'cuda': '', 'torch': pinned, 'wheels': MMCV_INDEX or '', 'nvcc': nvcc or ''}
    archs = os.environ.get('TORCH_CUDA_ARCH_LIST') or ';'.join(gpus.capabilities if gpus else ())
    if not archs and gpus is None:
        raise CannotChooseError(
            f'CUDA={request}, and no GPU is visible to compile mmcv for: set TORCH_CUDA_ARCH_LIST= too, '
            "such as 8.0 for A100, 9.0 for H100 and H200, or '8.0;9.0' for both"
        )
    check_archs(archs, build)
    return {
        'cuda': build.cuda,
        'torch': f'torch=={build.torch}' + ('' if build.on_pypi else f'+{tag(build)}'),
        'index': '' if build.on_pypi else f'{TORCH_INDEX}/{tag(build)}',
        'wheels': wheels(build),
        'nvcc': nvcc if nvcc and major(nvcc) == major(build.cuda) else '',
        'archs': archs,
        'gpus': str(gpus or ''),
    }


if __name__ == '__main__':
    try:
        print('\n'.join(f'{name}={shlex.quote(value)}' for name, value in plan(sys.argv[1]).items()))
    except CannotChooseError as error:
        sys.stderr.write(f'install: {error}\n')
        sys.exit(2)
