"""Checks of the environment, each a function that returns one line with the command that fixes what it found.

Only the standard library is imported here: packages that may be broken are imported in separate processes.
"""

import contextlib
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from pvt_mm.apis.command_line import ROOT, made_environment

# Distributions of the maintained forks, and those of upstream with the same import name.
STACK = {
    'onedl-mmengine': ('mmengine', 'mmengine-lite'),
    'onedl-mmcv': ('mmcv', 'mmcv-full', 'mmcv-lite'),
    'onedl-mmdetection': ('mmdet',),
    'onedl-mmsegmentation': ('mmsegmentation',),
}
UPSTREAM = {
    'onedl-mmengine': "'mmengine<1'",
    'onedl-mmcv': "'mmcv>=2.0.0,<2.2.0'",
    'onedl-mmdetection': "'mmdet<4'",
    'onedl-mmsegmentation': "'mmsegmentation<2'",
}
MODULES = dict(zip(('mmengine', 'mmcv', 'mmdet', 'mmseg'), STACK, strict=True))
DISTRIBUTIONS = ('torch', *STACK, *(name for names in STACK.values() for name in names))
REMOVE_UPSTREAM = 'pip uninstall -y ' + ' '.join(name for names in STACK.values() for name in names)
REMOVE_FORKS = f'pip uninstall -y {" ".join(STACK)}'
BUILD_TOOLS = "pip install 'setuptools<82' wheel ninja"
COMPILE = 'MMCV_WITH_OPS=1 pip install --no-build-isolation --no-deps --no-cache-dir --force-reinstall '
FORKS_NEED, UPSTREAM_NEEDS = (2, 6), (2, 1)  # torch
DATA = {
    'COCO': 'data/coco',
    'ADE20K': 'data/ade/ADEChallengeData2016',
    'ImageNet': 'data/imagenet',
    'shapes': 'data/shapes',
}
MIN_DISK, MIN_SHARED_MEMORY = 5, 1  # GB


class Line(NamedTuple):
    """The result of a check: what was checked, what was found, and the command that fixes it, if any.

    Its state is ``ok``, ``note`` (something is missing that not everyone needs) or ``broken``.
    """

    name: str
    state: str
    text: str
    fix: str = ''


def examine() -> Iterator[Line]:
    """Yields the line of each of :data:`CHECKS`, which run in parallel.

    Where neither PyTorch nor an OpenMMLab package is installed, one command installs all, not one for each.
    """
    with ThreadPoolExecutor(4) as threads:
        lines = threads.map(lambda check: check(), CHECKS)
        yield from lines if any(map(version, DISTRIBUTIONS)) else _with_one_fix(lines)


def _with_one_fix(lines: Iterator[Line]) -> Iterator[Line]:
    """Replaces what pip is to install, line by line, by one command."""
    environment = made_environment()
    fix = f'make setup; or, into this Python: {_install_all()}'
    if environment:
        fix = f'use {environment}, which make setup has installed, as in {environment} tools/doctor.py'
    for line in lines:
        if line.state == 'broken' and 'pip install' in line.fix:
            line, fix = line._replace(fix=fix), ''
        yield line


def _install_all() -> str:
    torch = f'pip install {torch_requirement()}'
    return ' && '.join([torch, BUILD_TOOLS, install_package('onedl-mmcv'), install_rest()])


def version(*distributions: str) -> str | None:
    """Returns the version of the first distribution that is installed, None if there is none."""
    for name in distributions:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return None


def probe(code: str) -> tuple[bool, str]:
    """Runs code in a separate Python process that imports no modules from the working directory.

    Returns:
        Whether it succeeded, and the last line of its output or, if it failed, of its error.
    """
    code = f'import sys, warnings; sys.path[:] = filter(None, sys.path); warnings.simplefilter("ignore")\n{code}'
    try:
        done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        return False, 'it takes longer than 300 s'
    lines = (done.stderr if done.returncode else done.stdout).strip().splitlines()
    if done.returncode < 0:
        lines.append(f'it crashes with signal {-done.returncode}')
    return done.returncode == 0, lines[-1].strip() if lines else ''


def is_upstream() -> bool:
    """Returns whether upstream's packages are installed; if none or both are, whether torch is too old for forks."""
    forks, upstream = any(map(version, STACK)), any(version(*names) for names in STACK.values())
    return upstream if forks != upstream else numbers(version('torch') or '9') < FORKS_NEED


def torch_requirement() -> str:
    """Returns the torch to install: the version that is there, which mmcv is compiled for, or one that fits."""
    found, needed = version('torch'), UPSTREAM_NEEDS if is_upstream() else FORKS_NEED
    if found and numbers(found) >= needed:
        return f'torch=={found.partition("+")[0]}'
    return 'torch==2.1.2' if is_upstream() else "'torch>=2.6'"


def install_package(fork: str) -> str:
    """Returns the command that installs one of the OpenMMLab packages, upstream's or the fork's."""
    command = COMPILE if fork == 'onedl-mmcv' else 'pip install '
    return command + (UPSTREAM[fork] if is_upstream() else fork)


def install_rest() -> str:
    """Returns the command that installs what is missing of the OpenMMLab packages and their dependencies."""
    return f"pip install -e '{ROOT}[{'openmmlab' if is_upstream() else 'onedl'}]'{_keep_numpy()}"


def _keep_numpy() -> str:
    """Returns what pip needs to be told so that it keeps a NumPy 1, which old packages are compiled for."""
    return " 'numpy<2'" if is_upstream() and numbers(version('numpy') or '1') < (2,) else ''


def numbers(text: str) -> tuple[int, ...]:
    """Returns the leading numbers of a version: '2.13.0+cpu' is (2, 13, 0)."""
    return tuple(int(part) for part in re.match(r'\d*(?:\.\d+)*', text)[0].split('.') if part)


def _pip_install(error: str, otherwise: str) -> str:
    """Returns the command that installs the module named in an import error, or ``otherwise``."""
    missing = re.search(r"No module named '(\w+)", error)
    if not missing:
        return otherwise
    if missing[1] in MODULES:
        return install_package(MODULES[missing[1]])
    name = {'cv2': 'opencv-python', 'PIL': 'pillow', 'yaml': 'PyYAML', 'pkg_resources': "'setuptools<82'"}
    name['torch'] = torch_requirement()
    return f'pip install {name.get(missing[1], missing[1])}{_keep_numpy()}'


# -------------------------------------------------------------------------------------------------------- the checks


def check_python() -> Line:
    """Python is supported by the pinned versions."""
    found = sys.version_info[:2]
    text = f'{found[0]}.{found[1]}, {sys.executable}'
    if (3, 10) <= found <= (3, 13):
        return Line('Python', 'ok', text)
    return Line('Python', 'broken', f'{text}: 3.10 to 3.13 are supported', 'make setup PYTHON=python3.12')


def check_torch() -> Line:
    """PyTorch can be imported and is recent enough."""
    fix = f'pip install --force-reinstall {torch_requirement()}'
    works, text = probe('import torch; print(torch.__version__, torch.version.cuda or "CPU")')
    if not works:
        return Line('torch', 'broken', text, fix)
    found, cuda = text.split(' ', 1)
    needed = UPSTREAM_NEEDS if is_upstream() else FORKS_NEED
    if numbers(found) < needed:
        return Line('torch', 'broken', f'{found} is older than {needed[0]}.{needed[1]}', fix)
    return Line('torch', 'ok', f'{found}, {"CUDA " * cuda[0].isdigit()}{cuda}')


def has_nvidia_gpu() -> bool:
    """Returns whether the machine has an NVIDIA GPU, without PyTorch."""
    return bool(glob.glob('/dev/nvidia[0-9]*')) or bool(shutil.which('nvidia-smi'))


def check_gpu() -> Line:
    """PyTorch can use the GPU, if the machine has one."""
    count = 'torch.cuda.device_count() if torch.cuda.is_available() else 0'
    works, text = probe(f'import torch; print(torch.__version__, torch.version.cuda, {count})')
    if not works:
        fix = f'pip install --force-reinstall {torch_requirement()}'
        return Line('GPU', 'broken', f'torch cannot be imported: {text}', fix)
    found, cuda, count = text.split()
    if count != '0':
        return Line('GPU', 'ok', f'{count} visible')
    if not has_nvidia_gpu():
        return Line('GPU', 'note', 'none: everything runs on the CPU, slowly')
    hidden = os.environ.get('CUDA_VISIBLE_DEVICES', 'all')
    if hidden.strip() in ('', '-1'):
        return Line('GPU', 'note', f'hidden by CUDA_VISIBLE_DEVICES={hidden}', 'unset CUDA_VISIBLE_DEVICES')
    oldest = '12.6' if numbers(found) >= (2, 8) else '11.8'  # that PyTorch's own index has for this torch
    index = f'https://download.pytorch.org/whl/cu{oldest.replace(".", "")}'
    fix = f'pip install --force-reinstall {torch_requirement()} --index-url {index}'
    if cuda == 'None':
        return Line('GPU', 'broken', 'the machine has one, but torch is built for CPUs only', fix)
    text = f"the machine has one, but its driver does not support torch's CUDA {cuda}"
    if numbers(cuda) <= numbers(oldest):
        return Line('GPU', 'broken', text, 'install a newer driver')
    return Line('GPU', 'broken', text, f'{fix}, or install a newer driver')


def check_numpy() -> Line:
    """Packages compiled against NumPy work with the installed version."""
    code = 'import numpy, torch; torch.from_numpy(numpy.zeros(1)).numpy(); import cv2, pycocotools._mask'
    works, text = probe(f'{code}; print(numpy.__version__)')
    if works:
        return Line('NumPy', 'ok', f'{text}, works with torch, OpenCV and pycocotools')
    fix = 'pip install --force-reinstall --no-deps --no-cache-dir pycocotools opencv-python'
    if 'NumPy 1.x' in text or '_ARRAY_API' in text or 'Numpy is not available' in text:
        fix = "pip install 'numpy<2'"
    return Line('NumPy', 'broken', text, _pip_install(text, fix))


def check_stack() -> Line:
    """The OpenMMLab packages are all installed, and all from upstream or all from the forks."""
    forks = {name: version(name) for name in STACK}
    upstream = {names[0]: version(*names) for names in STACK.values()}
    text = ', '.join(f'{name} {found}' for name, found in (forks | upstream).items() if found)
    if any(forks.values()) and any(upstream.values()):
        others = ' '.join(UPSTREAM[name] if is_upstream() else name for name in STACK if name != 'onedl-mmcv')
        remove = REMOVE_FORKS if is_upstream() else REMOVE_UPSTREAM
        fix = f'{remove} && {BUILD_TOOLS} && {install_package("onedl-mmcv")}'
        fix = f'{fix} && pip install --force-reinstall --no-deps {others}'
        return Line('OpenMMLab', 'broken', f'upstream and forks overwrite each other: {text}', fix)
    if not text:
        text = 'MMEngine, MMCV, MMDetection and MMSegmentation not installed'
        fix = f'{BUILD_TOOLS} && {install_package("onedl-mmcv")} && {install_rest()}'
        return Line('OpenMMLab', 'broken', text, fix)
    missing = [name for name, names in STACK.items() if not version(name) and not version(*names)]
    if not missing:
        return Line('OpenMMLab', 'ok', text)
    names = [STACK[name][0] if is_upstream() else name for name in missing]
    fix = ' && '.join(install_package(name) for name in missing)
    return Line('OpenMMLab', 'broken', f'{text}; {", ".join(names)} not installed', fix)


def check_mmcv_version() -> Line:
    """Upstream's MMDetection and MMSegmentation accept the version of MMCV."""
    mmcv, others = version('mmcv', 'mmcv-full', 'mmcv-lite'), version('mmdet', 'mmsegmentation')
    if mmcv and others and not (2, 0) <= numbers(mmcv) < (2, 2):
        text = f'mmcv {mmcv}: mmdet 3.3 and mmsegmentation 1.2 only accept 2.0 and 2.1'
        return Line('MMCV version', 'broken', text, install_package('onedl-mmcv'))
    return Line('MMCV version', 'ok', f'mmcv {mmcv} is accepted' if mmcv and others else 'the forks accept any')


def check_ops() -> Line:
    """MMCV's compiled operators work with this PyTorch, and on the GPU if there is one."""
    fix = install_package('onedl-mmcv')
    if version('mmcv-lite'):
        fix = f'pip uninstall -y mmcv-lite && {fix}'
    code = 'import torch, mmcv.ops as ops; print(torch.cuda.is_available(), ops.get_compiling_cuda_version())'
    works, text = probe(code)
    if works and not (text.startswith('True') and 'not available' in text):
        return Line('MMCV operators', 'ok', 'they can be loaded')
    if works:
        text, fix = 'compiled for CPUs only, the machine has a GPU', f'FORCE_CUDA=1 {fix}'
    elif '_ext' in text and ('No module' in text or 'cannot import name' in text):
        text = f'MMCV is installed without them: {text}'
    elif 'undefined symbol' in text or '.so' in text or 'DLL' in text:
        text = f'compiled for another version of torch: {text}'
    else:
        fix = _pip_install(text, fix)
    return Line('MMCV operators', 'broken', text, fix)


def check_imports() -> Line:
    """The models and datasets of MMDetection and MMSegmentation can be imported."""
    works, text = probe('import mmdet.models, mmdet.datasets, mmseg.models, mmseg.datasets')
    if works:
        return Line('MMDetection and MMSegmentation', 'ok', 'they can be imported')
    fix = _pip_install(text, install_rest())
    return Line('MMDetection and MMSegmentation', 'broken', text, fix)


def check_weights_only() -> Line:
    """MMDetection's and MMSegmentation's own tools can read their checkpoints with this PyTorch; ours can with any."""
    mmengine, torch = version('mmengine', 'mmengine-lite'), version('torch')
    if mmengine and torch and numbers(mmengine) <= (0, 10, 7) and numbers(torch) >= (2, 6):
        text = f"mmengine {mmengine} with torch {torch}: MMDetection's tools cannot read their checkpoints, ours can"
        return Line('weights_only', 'note', text, 'export TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1, for files that you trust')
    return Line('weights_only', 'ok', 'checkpoints can be read')


def check_pkg_resources() -> Line:
    """Setuptools has pkg_resources, which upstream's MMEngine and the compilation of MMCV need."""
    if probe('import pkg_resources')[0]:
        return Line('pkg_resources', 'ok', f'in setuptools {version("setuptools")}')
    text = f'missing in setuptools {version("setuptools")}: '
    if version('onedl-mmengine') and version('onedl-mmcv'):
        return Line('pkg_resources', 'note', f'{text}MMCV cannot be recompiled', "pip install 'setuptools<82'")
    return Line('pkg_resources', 'broken', f'{text}upstream MMEngine cannot be imported', "pip install 'setuptools<82'")


def check_package() -> Line:
    """This package can be imported from any folder, which MMDetection's own tools need."""
    works, text = probe('import pvt_mm.models, pvt_mm.datasets; print(pvt_mm.__file__)')
    if works:
        return Line('pvt_mm', 'ok', os.path.dirname(text))
    install = f'pip install --no-build-isolation --no-deps -e {ROOT}'
    return Line('pvt_mm', 'broken', text, install if "'pvt_mm" in text else _pip_install(text, install))


def check_writable() -> Line:
    """The folders for runs, downloaded weights and temporary files can be written."""
    cache = os.environ.get('TORCH_HOME') or os.path.join(os.environ.get('XDG_CACHE_HOME') or '~/.cache', 'torch')
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        return Line('writable', 'broken', 'no folder for temporary files', 'export TMPDIR=PATH')
    for path, fix in (
        ('work_dirs', 'tools/train.py CONFIG --work-dir PATH, or start it in another folder'),
        (cache, 'export TORCH_HOME=PATH'),
    ):
        path = Path(path).expanduser().absolute()
        existing = next(folder for folder in (path, *path.parents) if folder.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            return Line('writable', 'broken', f'{path} cannot be written', fix)
    return Line('writable', 'ok', 'work_dirs, downloaded weights, temporary files')


def check_disk() -> Line:
    """There is disk space for checkpoints."""
    free = shutil.disk_usage('.').free / 1e9
    if free < MIN_DISK:
        text = f'{free:.1f} GB free, and a run of 12 checkpoints needs {MIN_DISK} GB'
        return Line('disk', 'broken', text, 'tools/train.py CONFIG --work-dir PATH, on another disk')
    return Line('disk', 'ok', f'{free:.0f} GB free')


def check_shared_memory() -> Line:
    """There is shared memory for the images that data loader workers send to training."""
    if not os.path.isdir('/dev/shm'):
        return Line('shared memory', 'ok', 'not limited by /dev/shm')
    free = shutil.disk_usage('/dev/shm').free / 1e9
    if free < MIN_SHARED_MEMORY:
        fix = 'docker run --shm-size=8g, or --cfg-options train_dataloader.num_workers=0'
        return Line('shared memory', 'note', f'{free:.2f} GB free in /dev/shm: data loader workers may crash', fix)
    return Line('shared memory', 'ok', f'{free:.0f} GB free')


def check_data() -> Line:
    """The datasets are in the folders that the configs name."""
    found = [f'{name} in {folder}' for name, folder in DATA.items() if os.path.isdir(folder)]
    missing = [f'{name} in {folder}' for name, folder in DATA.items() if not os.path.isdir(folder)]
    if not missing:
        return Line('data', 'ok', ', '.join(found))
    fix = 'tools/make_shapes.py data/shapes' if 'shapes in data/shapes' in missing else ''
    others = 'for other folders, add --cfg-options data_root=PATH'
    return Line('data', 'note', f'found {", ".join(found) or "none"}; not {", ".join(missing)}: {others}', fix)


# In the order of their definition.
CHECKS = tuple(value for name, value in globals().items() if name.startswith('check_'))
