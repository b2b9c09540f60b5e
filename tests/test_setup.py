"""Set-up: the content of wheels, `tools/install.sh`, and its messages if a prerequisite is missing."""

import glob
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
VERSION = re.search(r"__version__ = '(\d+\.\d+\.\d+\S*)'", (ROOT / 'pvt_mm' / 'version.py').read_text())[1]
SHIPPED = ('configs', 'tools', 'model-index.yml')

# A Python that installs nothing and records its arguments. It remembers which torch and mmcv pip would have installed:
# torch from PyPI is for $FAKE_PYPI (cpu), and mmcv for $FAKE_WHEEL (cpu) unless it is compiled with FORCE_CUDA=1.
FAKE_PYTHON = """#!{bash}
echo "$*" >> {calls}
torch={state}/torch mmcv={state}/mmcv
case "$*" in
    *'"%d.%d"'*) echo "${{FAKE_VERSION:-3.11}}" ;;
    *'"cp%d%d"'*) echo cp311 ;;
    *sysconfig*) echo {state}/include ;;
    requirements/torch_builds.py*) exec {python} "$@" ;;
    '-m venv '*) mkdir -p "$3/bin" && touch "$3/pyvenv.cfg" && cp {fake} "$3/bin/python" ;;
    '-m pip cache list'*) echo "${{FAKE_CACHE-onedl_mmcv-{mmcv}-cp311-cp311-any.whl}}" ;;
    '-m pip uninstall'*) rm -f $torch $mmcv ;;
    '-m pip install --dry-run --report '*)
        [[ ${{FAKE_PYPI:-cpu}} == cpu ]] || name=nvidia-cublas
        echo "\\"name\\": \\"${{name:-sympy}}\\"" > "$6" && exit "${{FAKE_DRY_RUN:-0}}" ;;
    '-m pip install torch=='*)
        case "$*" in
            *+cpu*) [[ ! ${{FAKE_NO_INDEX:-}} ]] && echo cpu > $torch ;;
            *+cu*) version=${{4#*+cu}} && echo "${{version:0:2}}.${{version:2}}" > $torch ;;
            *) echo "${{FAKE_PYPI:-cpu}}" > $torch && exit "${{FAKE_PIP:-0}}" ;;
        esac ;;
    *--find-links*) [[ ${{FAKE_COMPILED:-}} ]] && echo "$FAKE_COMPILED" > $mmcv ;;
    '-m pip install'*requirements/mmcv.txt*)
        echo "FORCE_CUDA=${{FORCE_CUDA:-}} archs=${{TORCH_CUDA_ARCH_LIST:-}} $*" >> {calls}
        [[ -f $mmcv && $* != *--force-reinstall* ]] && exit
        if [[ $* != *--no-cache-dir* ]]; then echo "${{FAKE_WHEEL:-cpu}}" > $mmcv
        elif [[ ${{FORCE_CUDA:-}} ]]; then cat $torch > $mmcv; else echo cpu > $mmcv; fi ;;
    *torch.version.cuda*) cat $torch ;;
    *'device="cuda").sum()'*) [[ ! ${{FAKE_UNUSABLE:-}} ]] ;;
    *sigmoid_focal_loss*) [[ ${{@: -1}} == cpu || $(cat $mmcv) == "${{@: -1}}" ]] ;;
    *'print(torch.__version__, '*) echo "2.13.0+$(cat $torch)" "$(cat $mmcv)" ;;
    *mmcv.ops*) exit "${{FAKE_STACK:-0}}" ;;
esac
"""
# nvidia-smi of a driver (fields before R510 had no compute_cap), and nvcc.
FAKE_SMI = """#!{bash}
case "$*" in
    '') echo '| NVIDIA-SMI {driver}   Driver Version: {driver}   CUDA Version: {cuda} |' ;;
    *driver_version*) printf '%s' '{drivers}' ;;
    *compute_cap*) printf '%s' '{caps}' ;;
esac
"""
FAKE_NVCC = "#!{bash}\necho 'Cuda compilation tools, release {cuda}, V{cuda}.76'\n"


def copy_tree(target: Path) -> Path:
    """Copies the files of a clone that a build needs."""
    target.mkdir()
    for name in (*SHIPPED, 'pvt_mm', 'requirements', 'tests'):
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns('__pycache__', '.mim')
            shutil.copytree(ROOT / name, target / name, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, target)
    return target


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding='utf-8')


def build(tree: Path, out: Path, kind: str) -> subprocess.CompletedProcess:
    """Runs the build backend as pip does; ``kind`` is wheel, sdist or editable."""
    out.mkdir(exist_ok=True)
    code = f'from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})'
    return subprocess.run([sys.executable, '-c', code], cwd=tree, capture_output=True, text=True)


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_ships_configs_tools_and_version(tmp_path):
    tree = copy_tree(tmp_path / 'tree')
    command = [sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '--no-index', '-w', tmp_path]
    subprocess.run([*command, tree], check=True, capture_output=True)
    wheel = tmp_path / f'pvt_mm-{VERSION}-py3-none-any.whl'
    files = names(wheel)
    sources = {path for name in ('configs', 'tools') for path in (tree / name).rglob('*') if path.is_file()}
    assert any(path.suffix == '.py' for path in sources)
    expected = {f'pvt_mm/.mim/{path.relative_to(tree).as_posix()}' for path in sources}
    assert expected | {'pvt_mm/.mim/model-index.yml'} == {name for name in files if '/.mim/' in name}
    modules = {path.relative_to(tree).as_posix() for path in (tree / 'pvt_mm').rglob('*.py')}
    assert 'pvt_mm/py.typed' in files
    assert {'pvt_mm/version.py', 'pvt_mm/models/pvt.py'} <= modules <= files  # each sub-package has an __init__.py
    assert not [name for name in files if name.startswith('tests')]
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(f'pvt_mm-{VERSION}.dist-info/METADATA').decode()
    required = [line for line in metadata.splitlines() if line.startswith('Requires-Dist') and 'extra ==' not in line]
    assert required == ['Requires-Dist: numpy', 'Requires-Dist: rich', 'Requires-Dist: torch>=2.1']
    assert 'Requires-Python: >=3.10' in metadata


def test_sdist_builds_the_same_wheel(tmp_path):
    tree = copy_tree(tmp_path / 'tree')
    assert build(tree, tmp_path / 'wheel', 'wheel').returncode == 0
    assert build(tree, tmp_path, 'sdist').returncode == 0
    with tarfile.open(tmp_path / f'pvt_mm-{VERSION}.tar.gz') as archive:
        archive.extractall(tmp_path / 'unpacked', filter='data')
    assert build(tmp_path / 'unpacked' / f'pvt_mm-{VERSION}', tmp_path / 'again', 'wheel').returncode == 0
    wheel = f'pvt_mm-{VERSION}-py3-none-any.whl'
    assert names(tmp_path / 'wheel' / wheel) == names(tmp_path / 'again' / wheel)


def test_editable_install_links_and_wheel_needs_every_part(tmp_path):
    tree = copy_tree(tmp_path / 'tree')
    assert build(tree, tmp_path / 'out', 'editable').returncode == 0
    for name in SHIPPED:
        link = tree / 'pvt_mm' / '.mim' / name
        assert os.readlink(link) == f'../../{name}'
        assert link.resolve() == tree / name

    (tree / 'model-index.yml').unlink()
    for kind in ('wheel', 'sdist'):
        done = build(tree, tmp_path / 'out', kind)
        assert done.returncode != 0
        assert 'cannot build a distribution without model-index.yml' in done.stderr
    assert build(tree, tmp_path / 'out', 'editable').returncode == 0
    assert not os.path.lexists(tree / 'pvt_mm' / '.mim' / 'model-index.yml')


def test_every_requirement_is_pinned():
    files = sorted((ROOT / 'requirements').glob('*.txt'))
    lines = [line.strip() for path in files for line in path.read_text().splitlines()]
    pins = [line for line in lines if line and not line.startswith(('#', '-r '))]
    assert len(pins) > 20
    exact = re.compile(r"[\w.-]+==[\w.]+(; python_version [<>]=? '3\.\d+')?")
    assert [line for line in pins if not exact.fullmatch(line)] == []


class Installer:
    """Runs `tools/install.sh` with a fake Python and a separate environment."""

    def __init__(self, path: Path):
        self.calls_file = path / 'calls'
        self.python = path / 'python3'
        self.venv = path / 'venv'
        self.programs = path / 'programs'
        self.programs.mkdir()
        self.cuda_home = path / 'cuda'  # without nvcc
        mmcv = re.search('==(.+)', (ROOT / 'requirements' / 'mmcv.txt').read_text())[1]
        fake = dict(calls=self.calls_file, fake=self.python, mmcv=mmcv, state=path, python=sys.executable)
        self.write(self.python, FAKE_PYTHON, **fake)
        (path / 'include').mkdir()
        (path / 'include' / 'Python.h').touch()

    def write(self, path: Path, program: str, **values: object) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(program.format(bash=shutil.which('bash'), **values))
        path.chmod(0o755)

    def add_gpus(self, *caps: str, driver: str = '580.65.06', cuda: str = '13.0') -> None:
        lines = dict(drivers=f'{driver}\n' * len(caps), caps=''.join(f'{cap}\n' for cap in caps))
        self.write(self.programs / 'nvidia-smi', FAKE_SMI, driver=driver, cuda=cuda, **lines)

    def add_nvcc(self, cuda: str) -> None:
        self.write(self.cuda_home / 'bin' / 'nvcc', FAKE_NVCC, cuda=cuda)

    def __call__(self, **env: str) -> subprocess.CompletedProcess:
        if glob.glob('/dev/nvidia[0-9]*') and not (self.programs / 'nvidia-smi').exists():
            pytest.skip('this machine has a GPU')
        self.calls_file.write_text('')
        path = f'{self.programs}:{os.environ["PATH"]}'
        env = {'PATH': path, 'PYTHON': str(self.python), 'VENV': str(self.venv), 'CUDA_HOME': self.cuda_home, **env}
        command = [shutil.which('bash'), ROOT / 'tools' / 'install.sh']
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)

    def calls(self, start: str) -> list[str]:
        return [line for line in self.calls_file.read_text().splitlines() if line.startswith(start)]


@pytest.fixture
def install(tmp_path):
    return Installer(tmp_path)


def test_install_once(install):
    done = install()
    assert done.returncode == 0, done.stderr
    assert done.stdout == f'{install.venv}/bin/python\n'
    assert len(install.calls('-m pip install')) == 4
    assert 'Setting up' in done.stderr
    assert done.stderr.splitlines()[-1].endswith(': torch 2.13.0+cpu and mmcv 2.3.6, for the CPU.')
    assert 'a few minutes' in done.stderr  # the fake's cache has mmcv

    done = install()
    assert (done.returncode, done.stdout, done.stderr) == (0, f'{install.venv}/bin/python\n', '')
    assert install.calls('-m') == []


def test_failed_install_shows_the_log(install):
    done = install(FAKE_PIP='1')
    assert done.returncode == 1
    assert 'torch failed after' in done.stderr
    assert str(install.venv / 'install.log') in done.stderr
    assert done.stdout == ''
    assert not list(install.venv.glob('pvt_mm.installed*'))


@pytest.mark.parametrize(
    ('env', 'words'),
    [
        pytest.param({'PYTHON': '/nowhere/python3'}, ["no Python '/nowhere/python3'", '3.10'], id='no python'),
        pytest.param({'FAKE_VERSION': '3.8'}, ['is Python 3.8', '3.10'], id='old python'),
        pytest.param({'FAKE_VERSION': '3.14'}, ['is Python 3.14', '3.13'], id='new python'),
        pytest.param({'FAKE_CACHE': ''}, ['no C++ compiler', 'CXX'], id='no compiler'),
        pytest.param({'VENV': str(ROOT / 'tools')}, [str(ROOT / 'tools'), 'no virtual environment'], id='no venv'),
    ],
)
def test_missing_prerequisites_are_one_line(install, tmp_path, env, words):
    commands = tmp_path / 'bin'  # a PATH without compilers
    commands.mkdir()
    for name in ('cat', 'cmp', 'dirname', 'grep', 'ls', 'sed'):
        (commands / name).symlink_to(shutil.which(name))
    done = install(**env, PATH=str(commands))
    assert (done.returncode, done.stdout) == (2, ''), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert all(word in done.stderr for word in words), done.stderr
    assert not install.venv.exists()


def test_gpu_whose_driver_is_too_old_for_pypis_torch(install):
    install.add_gpus('9.0', '8.0', '9.0', driver='535.104.05', cuda='12.2')
    install.add_nvcc('12.4')
    done = install()
    assert done.returncode == 0, done.stderr
    assert 'for CUDA 12.6, driver 535.104.05 (CUDA 12.2), sm_80 sm_90' in done.stderr
    (torch,) = install.calls('-m pip install torch')
    assert torch.startswith('-m pip install torch==2.13.0+cu126 ')
    assert '--extra-index-url https://download.pytorch.org/whl/cu126' in torch
    (mmcv,) = install.calls('FORCE_CUDA')
    assert mmcv.startswith('FORCE_CUDA=1 archs=8.0;9.0 ')
    assert '--no-cache-dir' in mmcv  # pip's cache has an mmcv for the CPU
    built = 'torch 2.13.0+12.6 and mmcv 2.3.6 with CUDA 12.6 for sm_80 sm_90.'
    assert done.stderr.splitlines()[-1].endswith(built)

    assert install().stderr == ''
    done = install(TORCH_CUDA_ARCH_LIST='8.0;8.6;9.0')
    assert install.calls('FORCE_CUDA')[0].startswith('FORCE_CUDA=1 archs=8.0;8.6;9.0 ')
    assert '--force-reinstall' in install.calls('FORCE_CUDA')[0]


def test_torch_for_the_cpu_next_to_nvcc(install):
    install.add_nvcc('13.0')
    done = install()
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1].endswith(': torch 2.13.0+cpu and mmcv 2.3.6, for the CPU.')


def test_node_without_gpu(install):
    install.add_nvcc('13.0')
    done = install(FAKE_PYPI='13.0')
    assert done.returncode == 2
    assert "pip's torch==2.13.0 is built for CUDA and nvcc is here, but no GPU is visible" in done.stderr
    assert install.calls('-m pip install torch') == []

    done = install(FAKE_PYPI='13.0', FAKE_DRY_RUN='2')  # pip before 22.2
    assert done.returncode == 2
    assert 'torch is built for CUDA 13.0 and nvcc is here, but no GPU is visible' in done.stderr
    assert 'set CUDA=cpu, or CUDA=13.0 and TORCH_CUDA_ARCH_LIST=' in done.stderr
    assert install.calls('FORCE_CUDA') == []

    done = install(FAKE_PYPI='13.0', CUDA='13.0')
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert 'no GPU is visible to compile mmcv for: set TORCH_CUDA_ARCH_LIST= too' in done.stderr

    done = install(FAKE_PYPI='13.0', CUDA='13.0', TORCH_CUDA_ARCH_LIST='9.0')
    assert done.returncode == 0, done.stderr
    assert install.calls('FORCE_CUDA')[0].startswith('FORCE_CUDA=1 archs=9.0 ')
    assert install(FAKE_PYPI='13.0').stderr == ''  # CUDA= is remembered

    done = install(CUDA='cpu')
    assert 'replacing torch for 13.0' in done.stderr
    (torch,) = install.calls('-m pip install torch')
    assert torch.startswith('-m pip install torch==2.13.0+cpu ')
    assert '--extra-index-url https://download.pytorch.org/whl/cpu' in torch
    assert done.stderr.splitlines()[-1].endswith('torch 2.13.0+cpu and mmcv 2.3.6, for the CPU.')


def test_torch_for_cuda_on_a_machine_without_gpu_and_nvcc(install):
    done = install(FAKE_PYPI='13.0', FORCE_CUDA='1')
    assert done.returncode == 0, done.stderr
    assert install.calls('FORCE_CUDA')[0].startswith('FORCE_CUDA= archs= ')
    assert done.stderr.splitlines()[-1].endswith(', for the CPU.')

    install.add_gpus('9.0')  # a GPU node of the same cluster
    assert 'was set up for the CPU: set CUDA=' in install().stderr
    done = install(CUDA='cpu', FAKE_NO_INDEX='yes', FAKE_PYPI='13.0')
    assert "cannot be reached: using PyPI's" in done.stderr
    assert done.stderr.splitlines()[-1].endswith(', for the CPU.')
    assert install(CUDA='cpu').stderr == ''


def test_mmcv_for_the_cpu_is_recompiled_on_a_gpu(install):
    install.add_gpus('9.0')
    done = install(MMCV_INDEX='/wheels', FAKE_COMPILED='cpu', FAKE_PYPI='13.0')
    assert done.returncode == 2  # the first wheel is wrong, and there is no nvcc
    assert 'no nvcc to compile mmcv with: install the toolkit of CUDA 13.0' in done.stderr

    install.add_nvcc('13.1')
    done = install(MMCV_INDEX='/wheels', FAKE_COMPILED='cpu', FAKE_PYPI='13.0')
    assert done.returncode == 0, done.stderr
    assert 'is recompiled' in done.stderr
    assert '--no-cache-dir --force-reinstall' in install.calls('FORCE_CUDA=1')[0]
    assert done.stderr.splitlines()[-1].endswith('mmcv 2.3.6 with CUDA 13.0 for sm_90.')


def test_compiled_mmcv_is_tried_first(install):
    install.add_gpus('12.0', driver='570.86.15', cuda='12.8')
    done = install(FAKE_COMPILED='12.8')
    assert done.returncode == 0, done.stderr
    assert install.calls('-m pip install torch==2.8.0+cu128')
    page = 'https://mmwheels.onedl.ai/cu128-torch280/index.html'
    assert f'--find-links {page}' in install.calls('-m pip install -r requirements/mmcv.txt')[0]
    assert install.calls('FORCE_CUDA') == []
    assert done.stderr.splitlines()[-1].endswith(f'mmcv 2.3.6 with CUDA 12.8, from {page}.')


@pytest.mark.parametrize(
    ('env', 'words'),
    [
        pytest.param({'FAKE_PYPI': 'cpu'}, 'pip installed a torch for cpu instead of CUDA 13.0', id='other torch'),
        pytest.param({'FAKE_UNUSABLE': 'yes'}, 'torch for CUDA 13.0 cannot use the GPU (driver 580', id='unusable'),
    ],
)
def test_no_silent_build_for_the_cpu(install, env, words):
    install.add_gpus('9.0')
    install.add_nvcc('13.0')
    done = install(**{'FAKE_PYPI': '13.0', **env})
    assert (done.returncode, done.stdout) == (2, '')
    assert words in done.stderr.splitlines()[-1]


@pytest.fixture(scope='module')
def builds():
    spec = importlib.util.spec_from_file_location('torch_builds', ROOT / 'requirements' / 'torch_builds.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ('caps', 'cuda', 'nvcc', 'chosen'),
    [
        pytest.param(['9.0'], '13.1', '13.0', ('13.0', '2.13.0'), id='H200, new driver'),
        pytest.param(['9.0'], '13.0', '12.8', ('12.6', '2.13.0'), id='H200, older nvcc'),
        pytest.param(['9.0'], '12.2', '12.4', ('12.6', '2.13.0'), id='H200, older driver'),
        pytest.param(['9.0'], '13.0', None, ('12.8', '2.8.0'), id='H200, no nvcc'),
        pytest.param(['7.0', '8.0'], '13.0', '12.4', ('12.6', '2.13.0'), id='V100 and A100'),
        pytest.param(['10.0'], '12.8', '12.8', ('12.8', '2.8.0'), id='B200, older driver'),
        pytest.param(['8.0'], '11.4', '11.7', ('11.8', '2.7.1'), id='A100, R470'),
        pytest.param([], '13.0', '13.0', ('13.0', '2.13.0'), id='unknown GPU'),
    ],
)
def test_build_for_a_gpu(builds, monkeypatch, caps, cuda, nvcc, chosen):
    monkeypatch.setattr(builds.platform, 'machine', lambda: 'x86_64')
    build = builds.choose('auto', builds.Gpus('500.1', cuda, caps), nvcc)
    assert (build.cuda, build.torch) == chosen


@pytest.mark.parametrize(
    ('request_', 'caps', 'cuda', 'nvcc', 'words'),
    [
        ('auto', ['9.0'], '10.1', None, 'none of the builds .* update the driver .580 or newer., or set CUDA=cpu'),
        ('auto', ['7.0'], '13.0', '13.0', 'for CUDA 12.6, and nvcc is of CUDA 13.0: install the toolkit of CUDA 12'),
        (
            '13.0',
            ['9.0'],
            '12.4',
            '13.0',
            'driver 580 .*: set CUDA=12.6 or CUDA=12.8 or CUDA=11.8 or CUDA=cpu',
        ),
        (
            '12.6',
            ['10.0'],
            '13.0',
            '12.6',
            'GPUs .* to sm_9x, .* sm_100: set CUDA=13.0 or CUDA=12.8 or CUDA=cpu',
        ),
        ('12.6', ['9.0'], '12.6', None, 'compiled for CUDA 12.6, and there is no nvcc'),
        ('12.4', ['9.0'], '12.4', '12.4', 'CUDA=12.4 is not auto, cpu or one of 13.0, 12.6, 12.8, 11.8'),
    ],
)
def test_no_build_for_a_gpu(builds, request_, caps, cuda, nvcc, words):
    with pytest.raises(builds.CannotChooseError, match=words):
        builds.choose(request_, builds.Gpus('500.1', cuda, caps), nvcc)


@pytest.mark.parametrize(
    ('archs', 'words'),
    [
        ('foo', "'foo' is no compute capability: set it to such as 9.0"),
        ('9.0;sm_80', "'sm_80' is no compute capability"),
        ('9.0,8.0', "'9.0,8.0' is no compute capability"),
        ('9.0 5.0', 'CUDA=13.0 is for GPUs from sm_75 to sm_12x, not sm_50: set CUDA=12.6 or CUDA=11.8, or leave 5.0'),
        ('3.5', 'not sm_35: leave 3.5 out'),
    ],
)
def test_wrong_compute_capabilities(builds, monkeypatch, archs, words):
    monkeypatch.setattr(builds, 'find_gpus', lambda: None)
    monkeypatch.setattr(builds, 'find_nvcc', lambda: '13.0')
    monkeypatch.setenv('TORCH_CUDA_ARCH_LIST', archs)
    with pytest.raises(builds.CannotChooseError, match=re.escape(words)):
        builds.plan('13.0')
    for good in ('7.5', '8.0;9.0a+PTX', '9.0 12.0f'):
        monkeypatch.setenv('TORCH_CUDA_ARCH_LIST', good)
        assert builds.plan('13.0')['archs'] == good


def test_what_nvidia_smi_says(builds, monkeypatch):
    answers = {}
    monkeypatch.setattr(builds, 'output', lambda *command: answers.get(command[1] if command[1:] else ''))
    monkeypatch.setattr(builds.glob, 'glob', lambda pattern: [])
    assert builds.find_gpus() is None
    answers['--query-gpu=driver_version'] = 'No devices were found\n'
    assert builds.find_gpus() is None
    monkeypatch.setattr(builds.glob, 'glob', lambda pattern: ['/dev/nvidia3'])
    with pytest.raises(builds.CannotChooseError, match=r'^/dev/nvidia3 exists, but nvidia-smi does not show a GPU'):
        builds.find_gpus()
    answers['--query-gpu=driver_version'] = '470.82.01\n470.82.01\n'
    assert builds.find_gpus() == ('470.82.01', '11.8', [])  # by the driver's minimum
    answers[''] = '| NVIDIA-SMI 610.43.02   KMD Version: 610.43.02   CUDA UMD Version: 13.3 |'
    answers['--query-gpu=compute_cap'] = '9.0\n10.0\n9.0\n'
    assert builds.find_gpus() == ('470.82.01', '13.3', ['9.0', '10.0'])


def test_builds_of_the_pinned_torch(builds):
    pinned = (ROOT / 'requirements' / 'torch.txt').read_text().strip()
    assert pinned == f'torch=={builds.BUILDS[0].torch}'
    assert builds.BUILDS[0].on_pypi
    minor = {'11': 450, '12': 525, '13': 580}
    assert all(build.driver == minor[build.cuda.split('.')[0]] for build in builds.BUILDS)


def test_builds_in_the_documentation_and_the_image(builds):
    rows = re.findall(
        r'^\| (\d[\d.]+) \| (\S+) \| R(\d+) \| sm_(\d+) to sm_(\d+)x', read('docs/install.md'), re.MULTILINE
    )
    expected = [(b.cuda, b.torch, str(b.driver), f'{b.gpus[0] * 10:.0f}', str(b.gpus[1])) for b in builds.BUILDS]
    assert rows == expected

    image = read('Dockerfile')
    assert f'IMAGE=nvidia/cuda:{builds.BUILDS[0].cuda}.' in image
    assert f'ARG CUDA={builds.BUILDS[0].cuda}\n' in image
    copied = [name for line in re.findall('^COPY (.+) \\S+$', image, re.MULTILINE) for name in line.split()]
    assert len(copied) > 5
    assert all((ROOT / name).exists() for name in copied)


def test_active_environment_is_used_unchanged(install, tmp_path):
    active = tmp_path / 'active'
    (active / 'bin').mkdir(parents=True)
    shutil.copy(install.python, active / 'bin' / 'python')
    done = install(VENV='', PYTHON='', VIRTUAL_ENV=str(active))
    assert (done.returncode, done.stdout) == (0, f'{active}/bin/python\n')
    assert install.calls('-m') == []

    done = install(VIRTUAL_ENV=str(active), PYTHON='/nowhere/python3')
    assert done.returncode == 2  # VENV and PYTHON override it


def test_make_keeps_the_last_interpreter_until_it_has_another(tmp_path):
    shutil.copy(ROOT / 'Makefile', tmp_path)
    (tmp_path / 'build').mkdir()
    known, script = tmp_path / 'build/python', tmp_path / 'tools/install.sh'
    known.write_text('/old/python\n')
    script.parent.mkdir()
    for code, after in ((2, '/old/python\n'), (0, '/new/python\n')):
        script.write_text(f'#!/bin/sh\ncat build/python > during\necho /new/python\nexit {code}\n')
        script.chmod(0o755)
        assert subprocess.run(['make', 'setup'], cwd=tmp_path, capture_output=True).returncode == code
        assert ((tmp_path / 'during').read_text(), known.read_text()) == ('/old/python\n', after)
        assert list(known.parent.iterdir()) == [known]


def test_scripts_are_executable():
    for path in (ROOT / 'tools' / 'install.sh', ROOT / '.ci' / 'run'):
        assert path.stat().st_mode & stat.S_IXUSR, path
