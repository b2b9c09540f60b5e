"""How tools start: usage errors, a Python without the packages, Ctrl-C during imports, and the clone's own package."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pvt_mm.apis import command_line
from pvt_mm.apis.command_line import Parser, add_cfg_options, starting
from tests.conftest import ROOT

TOOLS = sorted(path for path in (ROOT / 'tools').glob('*.py') if path.stem != 'launch')
PARSED_AFTER_IMPORTS = ('benchmark',)  # its choices are those of the package


def parser() -> Parser:
    parser = Parser(prog='tool.py')
    parser.add_argument('config')
    parser.add_argument('--work-dir')
    add_cfg_options(parser)
    return parser


def usage_error(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(argv)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_a_usage_error_is_one_line(capsys):
    line = 'tool.py: error: {}; tool.py --help lists all options\n'
    assert usage_error(capsys) == line.format('the following arguments are required: config')
    unknown = 'unrecognized arguments: --workdir=a (did you mean --work-dir?)'
    assert usage_error(capsys, 'a.py', '--workdir=a') == line.format(unknown)
    assert usage_error(capsys, 'a.py', '--x') == line.format('unrecognized arguments: --x')
    pairs = "--cfg-options takes KEY=VALUE pairs, got 'a'"
    assert usage_error(capsys, 'a.py', '--cfg-options', 'b=1', 'a') == line.format(pairs)
    assert "pairs, got 'a=[(1]' (Imbalanced" in usage_error(capsys, 'a.py', '--cfg-options', 'a=[(1]')


@pytest.mark.parametrize('variable', ['RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'])
def test_only_the_first_rank_reports_it(variable, capsys, monkeypatch):
    monkeypatch.setenv(variable, '0')
    assert 'required: config' in usage_error(capsys)
    monkeypatch.setenv(variable, '1')
    assert usage_error(capsys) == ''


def test_settings_are_read_as_mmengine_reads_them():
    argv = ['a.py', '--cfg-options', 'a.b=1', 'c=[1,(2,x)]', '--cfg-options', 'a.b=2', 'd=k=v']
    assert parser().parse_args(argv).cfg_options == {'a.b': 2, 'c': [1, (2, 'x')], 'd': 'k=v'}
    assert parser().parse_args(['a.py']).cfg_options is None


@pytest.fixture
def bare(tmp_path) -> dict[str, str]:
    """The environment of a Python that lacks PyTorch, and everything else that is not in the standard library."""
    for name in ('torch', 'mmengine', 'numpy', 'rich', 'yaml'):
        (tmp_path / 'blocked' / name).mkdir(parents=True)
        text = f'raise ModuleNotFoundError("No module named {name!r}", name={name!r})'
        (tmp_path / 'blocked' / name / '__init__.py').write_text(text)
    return {**os.environ, 'PYTHONPATH': str(tmp_path / 'blocked')}


def run(*command: str | Path, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, **options)


@pytest.mark.parametrize(
    'tool', [path for path in TOOLS if path.stem not in PARSED_AFTER_IMPORTS], ids=lambda p: p.stem
)
def test_every_tool_parses_its_arguments_before_it_imports_packages(tool, bare):
    result = run(tool, '--nope', env=bare)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert ': error: ' in line


def test_a_python_without_the_packages_is_told_which_one_has_them(bare, tmp_path):
    clone = tmp_path / 'clone'
    for name in ('pvt_mm/apis', 'pvt_mm/utils', 'tools'):
        (clone / name).mkdir(parents=True)
    for name in ('pvt_mm/__init__.py', 'pvt_mm/version.py', 'tools/flops.py', 'pvt_mm/apis/command_line.py'):
        shutil.copy(ROOT / name, clone / name)
    for path in (ROOT / 'pvt_mm/utils').glob('*.py'):
        shutil.copy(path, clone / 'pvt_mm/utils')

    def told() -> str:
        result = run(clone / 'tools/flops.py', ROOT / 'configs/retinanet/pvt_s_1x.py', env=bare)
        assert result.returncode == 1
        (line,) = result.stderr.splitlines()
        return line

    start = f'error: this Python, {sys.executable}, has no rich: '
    assert told() == start + 'run `make setup`, or activate an environment with PyTorch and MMEngine'
    for made in (clone / '.venv/bin/python', tmp_path / 'other/bin/python'):
        made.parent.mkdir(parents=True)
        made.symlink_to(sys.executable)
        if made.is_relative_to(clone):
            assert told() == f'{start}use {made} {clone}/tools/flops.py, or activate that environment'
    (clone / 'build').mkdir()
    (clone / 'build/python').write_text(f'{made}\n')
    assert told() == f'{start}use {made} {clone}/tools/flops.py, or activate that environment'


@pytest.mark.parametrize(
    ('arguments', 'error'),
    [
        (
            ['configs/retinanet/pvt_s_lx.py'],
            'the config {} does not exist; did you mean configs/retinanet/pvt_s_1x.py?',
        ),
        (['configs'], 'the config configs is a folder'),
        (['configs/retinanet/pvt_s_1x.py', '--data', 'test'], '--data test does not exist; did you mean tests?'),
        (['configs/retinanet/pvt_s_1x.py', '--data', 'docs', '/0'], '--data /0 does not exist: give a folder, or COCO'),
    ],
)
def test_paths_that_do_not_exist_are_found_before_imports(arguments, error, bare):
    result = run(ROOT / 'tools/train.py', *arguments, env=bare, cwd=ROOT)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f'error: {error.format(arguments[0])}')


def test_failed_imports_and_interrupts_are_one_line(capsys, monkeypatch):
    def fail(error: BaseException, cause: BaseException | None = None) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop, starting('tools.any'):
            raise error from cause
        return stop.value.code, capsys.readouterr().err

    broken = 'error: AssertionError: wrong MMCV; tools/doctor.py says how to fix it\n'
    assert fail(AssertionError('wrong MMCV')) == (1, broken)
    assert fail(KeyboardInterrupt()) == (130, 'interrupted\n')
    assert fail(ImportError('numpy failed'), KeyboardInterrupt()) == (130, 'interrupted\n')
    monkeypatch.setattr(command_line, 'made_environment', lambda: sys.executable)
    assert 'has no mmcv: tools/doctor.py says' in fail(ModuleNotFoundError('no mmcv', name='mmcv'))[1]
    monkeypatch.setenv('PVT_MM_DEBUG', '1')
    with pytest.raises(AssertionError), starting('tools.any'):
        raise AssertionError


def not_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # it is in background processes


def test_ctrl_c_during_imports(tmp_path):
    (tmp_path / 'rich').mkdir()
    started = tmp_path / 'started'
    (tmp_path / 'rich/__init__.py').write_text(f'import time; open({str(started)!r}, "w").close(); time.sleep(60)')
    environment = {**os.environ, 'PYTHONPATH': str(tmp_path)}
    command = [sys.executable, ROOT / 'tools/flops.py', ROOT / 'configs/retinanet/pvt_s_1x.py']
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=not_ignored)
    while not started.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == 'interrupted\n'
    assert process.returncode == 130


def test_a_tool_uses_the_package_of_its_own_clone(tmp_path):
    (tmp_path / 'pvt_mm').mkdir()
    (tmp_path / 'pvt_mm/__init__.py').write_text('raise RuntimeError("the package of another clone")')
    result = run(ROOT / 'tools/doctor.py', '--help', env={**os.environ, 'PYTHONPATH': str(tmp_path)})
    assert result.returncode == 0, result.stderr
