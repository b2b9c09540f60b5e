"""What can be wrong with the environment, a function a line, and the command that mends it.

Nothing is imported here but the standard library: what may be broken is tried in processes of its own.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
# An import name, its distribution in the maintained forks, and those of upstream.
STACK = {
    'mmengine': ('onedl-mmengine', ('mmengine', 'mmengine-lite')),
    'mmcv': ('onedl-mmcv', ('mmcv', 'mmcv-full', 'mmcv-lite')),
    'mmdet': ('onedl-mmdetection', ('mmdet',)),
    'mmseg': ('onedl-mmsegmentation', ('mmsegmentation',)),
}
REMOVE_UPSTREAM = 'pip uninstall -y ' + ' '.join(name for _, upstream in STACK.values() for name in upstream)
COMPILE = 'MMCV_WITH_OPS=1 pip install --no-build-isolation --no-deps --no-cache-dir --force-reinstall '
INSTALL_FORK = f"pip install 'setuptools<82' wheel ninja && {COMPILE}onedl-mmcv && pip install -e '{ROOT}[onedl]'"
DATA = {
    'COCO': 'data/coco',
    'ADE20K': 'data/ade/ADEChallengeData2016',
    'ImageNet': 'data/imagenet',
    'shapes': 'data/shapes',
}
LEAST_DISK, LEAST_SHARED = 5, 1  # GB


class Line(NamedTuple):
    """What a check says.

    Attributes:
        name: What was checked.
        state: ``ok``, ``note`` (something is absent that not everyone needs) or ``broken``.
        text: What is there, or what is wrong.
        mend: The command that mends it, '' where there is nothing to mend.
    """

    name: str
    state: str
    text: str
    mend: str = ''


def examine() -> Iterator[Line]:
    """Yields a line for each of :data:`CHECKS`, which run side by side."""
    with ThreadPoolExecutor(4) as threads:
        yield from threads.map(lambda check: check(), CHECKS)


def version(*distributions: str) -> str | None:
    """Returns the version of the first of the distributions that is installed, None where none is."""
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def probe(code: str, seconds: int = 300) -> tuple[bool, str]:
    """Runs code in a Python of its own, which the working directory adds no modules to.

    Returns:
        Whether it ran, and the last line that it printed or, where it failed, of its error.
    """
    code = f'import sys, warnings; sys.path[:] = filter(None, sys.path); warnings.simplefilter("ignore")\n{code}'
    try:
        done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return False, f'it takes more than {seconds} s'
    lines = (done.stderr if done.returncode else done.stdout).strip().splitlines()
    if done.returncode < 0:
        lines.append(f'it crashes with signal {-done.returncode}')
    return done.returncode == 0, lines[-1].strip() if lines else ''


def numbers(text: str) -> tuple[int, ...]:
    """Returns the leading numbers of a version: '2.13.0+cpu' is (2, 13, 0)."""
    return tuple(int(part) for part in re.match(r'\d*(?:\.\d+)*', text)[0].split('.') if part)


def _pip_install(error: str, otherwise: str) -> str:
    """Returns the command that installs the module that an import error names, or ``otherwise``."""
    missing = re.search(r"No module named '(\w+)", error)
    if not missing:
        return otherwise
    name = {'cv2': 'opencv-python', 'PIL': 'pillow', 'yaml': 'PyYAML', 'pkg_resources': "'setuptools<82'"}
    return f'pip install {name.get(missing[1], missing[1])}'


# -------------------------------------------------------------------------------------------------------- the checks


def check_python() -> Line:
    """Python is one that the pinned versions are for."""
    found = sys.version_info[:2]
    text = f'{found[0]}.{found[1]}, {sys.executable}'
    if (3, 10) <= found <= (3, 13):
        return Line('Python', 'ok', text)
    return Line('Python', 'broken', f'{text}: 3.10 to 3.13 are supported', 'make setup PYTHON=python3.12')


def check_torch() -> Line:
    """PyTorch imports and is recent enough."""
    mend = "pip install 'torch>=2.4'"
    works, text = probe('import torch; print(torch.__version__, torch.version.cuda or "for CPUs")')
    if not works:
        return Line('torch', 'broken', text, mend)
    found, cuda = text.split(' ', 1)
    if numbers(found) < (2, 4):
        return Line('torch', 'broken', f'{found} is older than 2.4', mend)
    return Line('torch', 'ok', f'{found}, {"CUDA " * cuda[0].isdigit()}{cuda}')


def gpu_is_there() -> bool:
    """Returns whether the machine has an NVIDIA GPU, whatever PyTorch says."""
    return os.path.exists('/dev/nvidia0') or bool(shutil.which('nvidia-smi'))


def check_gpu() -> Line:
    """PyTorch sees the GPU that is there."""
    code = 'import torch; print(torch.version.cuda, torch.cuda.device_count() if torch.cuda.is_available() else 0)'
    works, text = probe(code)
    if not works:
        return Line('GPU', 'broken', f'torch does not import, so none can be seen: {text}', "pip install 'torch>=2.4'")
    cuda, count = text.split()
    if count != '0':
        return Line('GPU', 'ok', f'{count} visible')
    if not gpu_is_there():
        return Line('GPU', 'note', 'none here: everything runs on the CPU, slowly')
    hidden = os.environ.get('CUDA_VISIBLE_DEVICES')
    if hidden is not None and hidden.strip() in ('', '-1'):
        return Line('GPU', 'note', f'CUDA_VISIBLE_DEVICES={hidden} hides it', 'unset CUDA_VISIBLE_DEVICES')
    if cuda == 'None':
        mend = 'pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu126'
        return Line('GPU', 'broken', 'there is one, and this torch is for CPUs alone', mend)
    mend = 'pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu118, or a newer driver'
    return Line('GPU', 'broken', f"there is one, and torch's CUDA {cuda} cannot use its driver", mend)


def check_numpy() -> Line:
    """What is compiled against NumPy fits the one that is installed."""
    code = 'import numpy, torch; torch.from_numpy(numpy.zeros(1)).numpy(); import cv2, pycocotools._mask'
    works, text = probe(f'{code}; print(numpy.__version__)')
    if works:
        return Line('NumPy', 'ok', f'{text}, and torch, OpenCV and pycocotools with it')
    if 'No module named' in text:
        return Line('NumPy', 'broken', text, _pip_install(text, ''))
    old = 'NumPy 1.x' in text or '_ARRAY_API' in text or 'Numpy is not available' in text
    rebuild = 'pip install --force-reinstall --no-deps --no-cache-dir pycocotools opencv-python'
    return Line('NumPy', 'broken', text, "pip install 'numpy<2'" if old else rebuild)


def check_stack() -> Line:
    """The OpenMMLab packages are all there, and all upstream's or all the forks'."""
    forks = {name: version(fork) for name, (fork, _) in STACK.items()}
    upstream = {name: version(*theirs) for name, (_, theirs) in STACK.items()}
    if any(forks.values()) and any(upstream.values()):
        both = ', '.join(
            [f'{STACK[name][0]} {found}' for name, found in forks.items() if found]
            + [f'upstream {name} {found}' for name, found in upstream.items() if found]
        )
        mend = f'{REMOVE_UPSTREAM} && {INSTALL_FORK} --force-reinstall --no-deps'
        return Line('OpenMMLab', 'broken', f'upstream and forks overwrite each other: {both}', mend)
    there = forks if any(forks.values()) else upstream
    if not any(there.values()):
        return Line('OpenMMLab', 'broken', 'MMEngine, MMCV, MMDetection and MMSegmentation are absent', INSTALL_FORK)
    kind, column = ('the onedl forks', 0) if there is forks else ('upstream', 1)
    missing = [STACK[name][0] if column == 0 else STACK[name][1][0] for name, found in there.items() if not found]
    text = f'{kind}: ' + ', '.join(f'{name} {found}' for name, found in there.items() if found)
    if missing:
        compiled = [COMPILE + name for name in missing if name.endswith('mmcv')]
        others = [name for name in missing if not name.endswith('mmcv')]
        mend = ' && '.join(compiled + [f'pip install {" ".join(others)}'] * bool(others))
        return Line('OpenMMLab', 'broken', f'{text}; {", ".join(missing)} absent', mend)
    return Line('OpenMMLab', 'ok', text)


def check_mmcv_bound() -> Line:
    """The installed MMCV is one that upstream's MMDetection and MMSegmentation accept."""
    mmcv, others = version('mmcv', 'mmcv-full', 'mmcv-lite'), version('mmdet', 'mmsegmentation')
    if mmcv and others and not (2, 0) <= numbers(mmcv) < (2, 2):
        text = f'mmcv {mmcv}: mmdet 3.3 and mmsegmentation 1.2 refuse all but 2.0 and 2.1'
        return Line("MMCV's bound", 'broken', text, f"{COMPILE}'mmcv>=2.0.0,<2.2.0'")
    return Line("MMCV's bound", 'ok', f'mmcv {mmcv} is within it' if mmcv and others else 'the forks have none')


def check_ops() -> Line:
    """MMCV's compiled operators are there, for this PyTorch, and for the GPU where there is one."""
    mend = COMPILE + ('onedl-mmcv' if version('onedl-mmcv') or not version('mmcv') else "'mmcv>=2.0.0,<2.2.0'")
    if version('mmcv-lite'):
        mend = f'pip uninstall -y mmcv-lite && {mend}'
    code = 'import torch, mmcv.ops as ops; print(torch.cuda.is_available(), ops.get_compiling_cuda_version())'
    works, text = probe(code)
    if works and text.startswith('True') and 'not available' in text:
        return Line("MMCV's operators", 'broken', 'they are for CPUs alone, and there is a GPU', f'FORCE_CUDA=1 {mend}')
    if works:
        return Line("MMCV's operators", 'ok', 'they load')
    if '_ext' in text and ('No module' in text or 'cannot import name' in text):
        return Line("MMCV's operators", 'broken', f'MMCV was installed without them: {text}', mend)
    if 'undefined symbol' in text or '.so' in text or 'DLL' in text:
        return Line("MMCV's operators", 'broken', f'they were compiled for another torch: {text}', mend)
    return Line("MMCV's operators", 'broken', text, _pip_install(text.replace("'mmcv", "'onedl-mmcv"), mend))


def check_weights_only() -> Line:
    """MMEngine can resume from its own checkpoints under this PyTorch."""
    mmengine, torch = version('mmengine', 'mmengine-lite'), version('torch')
    if mmengine and torch and numbers(mmengine) <= (0, 10, 7) and numbers(torch) >= (2, 6):
        text = f"mmengine {mmengine} with torch {torch}: MMDetection's own tools cannot read their checkpoints"
        return Line('weights_only', 'broken', text, f'{REMOVE_UPSTREAM} && {INSTALL_FORK}')
    return Line('weights_only', 'ok', 'checkpoints can be read')


def check_pkg_resources() -> Line:
    """Setuptools has the module that upstream's MMEngine, and compiling MMCV, need."""
    if probe('import pkg_resources')[0]:
        return Line('pkg_resources', 'ok', f'setuptools {version("setuptools")} has it')
    text = f'setuptools {version("setuptools")} lacks it: '
    if version('onedl-mmengine') and version('onedl-mmcv'):
        return Line('pkg_resources', 'note', f'{text}MMCV cannot be compiled again', "pip install 'setuptools<82'")
    return Line('pkg_resources', 'broken', f'{text}upstream MMEngine does not import', "pip install 'setuptools<82'")


def check_imports() -> Line:
    """Models and data sets of all the packages import."""
    works, text = probe('import mmdet.models, mmdet.datasets, mmseg.models, mmseg.datasets')
    if works:
        return Line('MMDetection and MMSegmentation', 'ok', 'they import')
    mend = _pip_install(text, f"pip install -e '{ROOT}[onedl]'")
    return Line('MMDetection and MMSegmentation', 'broken', text, mend)


def check_package() -> Line:
    """This package can be imported from anywhere, which MMDetection's own tools need."""
    works, text = probe('import pvt_mm.models, pvt_mm.datasets; print(pvt_mm.__file__)')
    if works:
        return Line('pvt_mm', 'ok', os.path.dirname(text))
    install = f'pip install --no-build-isolation --no-deps -e {ROOT}'
    return Line('pvt_mm', 'broken', text, install if "'pvt_mm" in text else _pip_install(text, install))


def check_writable() -> Line:
    """Where runs, downloaded weights and temporary files go can be written."""
    cache = os.environ.get('TORCH_HOME') or os.path.join(os.environ.get('XDG_CACHE_HOME') or '~/.cache', 'torch')
    try:
        temporary = tempfile.gettempdir()
    except FileNotFoundError:
        return Line('writable', 'broken', 'there is no folder for temporary files', 'export TMPDIR=PATH')
    for path, mend in (
        ('work_dirs', 'tools/train.py CONFIG --work-dir PATH, or work in another folder'),
        (cache, 'export TORCH_HOME=PATH'),
        (temporary, 'export TMPDIR=PATH'),
    ):
        path = Path(path).expanduser().absolute()
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            return Line('writable', 'broken', f'{path} cannot be written', mend)
    return Line('writable', 'ok', 'work_dirs, downloaded weights, temporary files')


def check_disk() -> Line:
    """There is room for checkpoints."""
    free = shutil.disk_usage('.').free / 1e9
    if free < LEAST_DISK:
        text = f'{free:.1f} GB are free here, and a run of 12 checkpoints takes {LEAST_DISK}'
        return Line('disk', 'broken', text, 'tools/train.py CONFIG --work-dir PATH, on another disk')
    return Line('disk', 'ok', f'{free:.0f} GB free')


def check_shared_memory() -> Line:
    """There is room for the pictures that workers hand to training."""
    if not os.path.isdir('/dev/shm'):
        return Line('shared memory', 'ok', 'this system sets no limit in /dev/shm')
    free = shutil.disk_usage('/dev/shm').free / 1e9
    if free < LEAST_SHARED:
        mend = 'docker run --shm-size=8g, or --cfg-options train_dataloader.num_workers=0'
        return Line('shared memory', 'note', f'{free:.2f} GB in /dev/shm: workers that load pictures may crash', mend)
    return Line('shared memory', 'ok', f'{free:.0f} GB')


def check_data() -> Line:
    """Data sets are where the configs look for them."""
    found = [f'{name} in {folder}' for name, folder in DATA.items() if os.path.isdir(folder)]
    absent = [f'{name} in {folder}' for name, folder in DATA.items() if not os.path.isdir(folder)]
    if not absent:
        return Line('data', 'ok', ', '.join(found))
    mend = 'tools/make_shapes.py data/shapes' if 'shapes in data/shapes' in absent else ''
    others = 'where others are elsewhere, add --cfg-options data_root=PATH'
    return Line('data', 'note', f'found {", ".join(found) or "none"}; not {", ".join(absent)}: {others}', mend)


CHECKS: tuple[Callable[[], Line], ...] = (
    check_python,
    check_torch,
    check_gpu,
    check_numpy,
    check_stack,
    check_mmcv_bound,
    check_ops,
    check_imports,
    check_weights_only,
    check_pkg_resources,
    check_package,
    check_writable,
    check_disk,
    check_shared_memory,
    check_data,
)
