"""Set-up: the content of wheels, `tools/install.sh`, and its messages if a prerequisite is missing."""

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

# A Python that installs nothing and records its arguments.
FAKE_PYTHON = """#!{bash}
echo "$*" >> {calls}
case "$*" in
    *'"%d.%d"'*) echo "${{FAKE_VERSION:-3.11}}" ;;
    *'"cp%d%d"'*) echo cp311 ;;
    *mmcv.ops*) exit "${{FAKE_STACK:-0}}" ;;
    '-m venv '*) mkdir -p "$3/bin" && touch "$3/pyvenv.cfg" && cp {fake} "$3/bin/python" ;;
    '-m pip cache list'*) echo "${{FAKE_CACHE-onedl_mmcv-{mmcv}-cp311-cp311-any.whl}}" ;;
    '-m pip install'*) exit "${{FAKE_PIP:-0}}" ;;
esac
"""


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
    assert required == ['Requires-Dist: numpy', 'Requires-Dist: rich', 'Requires-Dist: torch>=2.6']
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
        mmcv = re.search('==(.+)', (ROOT / 'requirements' / 'mmcv.txt').read_text())[1]
        text = FAKE_PYTHON.format(bash=shutil.which('bash'), calls=self.calls_file, fake=self.python, mmcv=mmcv)
        self.python.write_text(text)
        self.python.chmod(0o755)

    def __call__(self, **env: str) -> subprocess.CompletedProcess:
        self.calls_file.write_text('')
        env = {'PATH': os.environ['PATH'], 'PYTHON': str(self.python), 'VENV': str(self.venv), **env}
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


def test_active_environment_is_used_unchanged(install, tmp_path):
    active = tmp_path / 'active'
    (active / 'bin').mkdir(parents=True)
    shutil.copy(install.python, active / 'bin' / 'python')
    done = install(VENV='', PYTHON='', VIRTUAL_ENV=str(active))
    assert (done.returncode, done.stdout) == (0, f'{active}/bin/python\n')
    assert install.calls('-m') == []

    done = install(VIRTUAL_ENV=str(active), PYTHON='/nowhere/python3')
    assert done.returncode == 2  # VENV and PYTHON override it


def test_scripts_are_executable():
    for path in (ROOT / 'tools' / 'install.sh', ROOT / '.ci' / 'run'):
        assert path.stat().st_mode & stat.S_IXUSR, path
