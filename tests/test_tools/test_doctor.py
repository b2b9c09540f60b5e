"""Every check of the environment, on broken environments that are faked by packages that shadow the real ones."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from importlib.util import find_spec
from pathlib import Path

import pytest

from pvt_mm.apis import doctor
from tests.conftest import ROOT
from tools import doctor as doctor_tool


@pytest.fixture
def plant(tmp_path, monkeypatch):
    """Shadows modules in subprocesses: ``plant(name='the code of its __init__')``, where __ is a dot."""
    site = tmp_path / 'site'

    def write(**modules: str) -> None:
        for name, text in modules.items():
            path = site / name.replace('__', '/') / '__init__.py'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    site.mkdir()
    monkeypatch.setenv('PYTHONPATH', f'{site}:{ROOT}')
    monkeypatch.chdir(tmp_path)
    return write


@pytest.fixture
def installed(monkeypatch):
    """Replaces the installed distributions: ``installed(mmcv='2.1.0')``, where _ is a hyphen."""

    def replace(**versions: str) -> None:
        there = {name.replace('_', '-'): version for name, version in versions.items()}
        monkeypatch.setattr(doctor, 'version', lambda *names: next((there[n] for n in names if n in there), None))

    return replace


FORKS = dict(onedl_mmengine='0.10.12', onedl_mmcv='2.3.6', onedl_mmdetection='3.5.1', onedl_mmsegmentation='1.4.2')
UPSTREAM = dict(mmengine='0.10.7', mmcv='2.1.0', mmdet='3.3.0', mmsegmentation='1.2.2')
WORKING_TORCH = (
    '__version__ = "2.13.0"\n'
    'class version: cuda = {cuda!r}\n'
    'class cuda:\n is_available = staticmethod(lambda: {gpus} > 0)\n device_count = staticmethod(lambda: {gpus})\n'
)


def is_broken(line: doctor.Line, text: str, fix: str) -> bool:
    assert line.state == 'broken', line
    assert text in line.text
    assert fix in line.fix
    return True


def test_python(monkeypatch):
    assert doctor.check_python().state == 'ok'
    monkeypatch.setattr(sys, 'version_info', (3, 9, 1))
    assert is_broken(doctor.check_python(), '3.9', 'PYTHON=python3.12')


def test_torch(plant, installed):
    installed(**FORKS, torch='2.13.0+cpu')
    plant(torch=WORKING_TORCH.format(cuda='12.6', gpus=0))
    assert doctor.check_torch() == ('torch', 'ok', '2.13.0, CUDA 12.6', '')
    plant(torch='raise OSError("libcudart.so.12: cannot open shared object file")')
    assert is_broken(doctor.check_torch(), 'libcudart.so.12', 'pip install --force-reinstall torch==2.13.0')
    plant(torch='import os; os.abort()')
    assert is_broken(doctor.check_torch(), 'crashes with signal 6', 'torch==2.13.0')
    installed(**FORKS, torch='2.5.1')
    plant(torch=WORKING_TORCH.format(cuda='12.4', gpus=0).replace('2.13.0', '2.5.1'))
    assert is_broken(doctor.check_torch(), '2.5.1 is older than 2.6', "'torch>=2.6'")
    installed(**UPSTREAM, torch='2.1.2')
    plant(torch=WORKING_TORCH.format(cuda='12.1', gpus=0).replace('2.13.0', '2.1.2'))
    assert doctor.check_torch().state == 'ok'
    installed(**UPSTREAM, torch='2.0.1')
    plant(torch=WORKING_TORCH.format(cuda='11.8', gpus=0).replace('2.13.0', '2.0.1'))
    assert is_broken(doctor.check_torch(), '2.0.1 is older than 2.1', 'torch==2.1.2')


@pytest.mark.parametrize(
    ('cuda', 'visible', 'present', 'hidden', 'state', 'text'),
    [
        ('12.6', 2, True, None, 'ok', '2 visible'),
        (None, 0, False, None, 'note', 'none: everything runs on the CPU'),
        ('12.6', 0, True, '', 'note', 'hidden by CUDA_VISIBLE_DEVICES='),
        (None, 0, True, None, 'broken', 'torch is built for CPUs only'),
        ('12.6', 0, True, None, 'broken', "its driver does not support torch's CUDA 12.6"),
    ],
)
def test_gpu(cuda, visible, present, hidden, state, text, plant, monkeypatch):
    plant(torch=WORKING_TORCH.format(cuda=cuda, gpus=visible))
    monkeypatch.setattr(doctor, 'has_nvidia_gpu', lambda: present)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    if hidden is not None:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', hidden)
    line = doctor.check_gpu()
    assert (line.state, text in line.text) == (state, True), line
    assert bool(line.fix) == (state == 'broken' or hidden is not None)


@pytest.mark.parametrize(
    ('error', 'fix'),
    [
        ('ValueError("numpy.dtype size changed, may indicate binary incompatibility")', '--force-reinstall --no-deps'),
        ('ImportError("A module that was compiled using NumPy 1.x cannot be run in NumPy 2")', "pip install 'numpy<2'"),
        ('ModuleNotFoundError("No module named \'cv2\'")', 'pip install opencv-python'),
    ],
)
def test_numpy_abi(error, fix, plant):
    plant(torch='from_numpy = lambda array: type("T", (), {"numpy": lambda self: 0})()', cv2=f'raise {error}')
    assert is_broken(doctor.check_numpy(), error.split('(')[0], fix)


@pytest.mark.parametrize(
    ('torch', 'cuda', 'fix'),
    [
        ('2.1.2', '12.1', 'torch==2.1.2 --index-url https://download.pytorch.org/whl/cu118, or install a newer driver'),
        ('2.1.2', '11.8', 'install a newer driver'),
        ('2.0.1', None, 'torch==2.1.2 --index-url https://download.pytorch.org/whl/cu118'),
        ('2.1.2', None, 'torch==2.1.2 --index-url https://download.pytorch.org/whl/cu118'),
        (
            '2.13.0',
            '13.0',
            'torch==2.13.0 --index-url https://download.pytorch.org/whl/cu126, or install a newer driver',
        ),
        ('2.13.0', '12.6', 'install a newer driver'),
    ],
)
def test_the_torch_for_a_gpu_has_the_version_that_is_there(torch, cuda, fix, plant, installed, monkeypatch):
    installed(**(FORKS if torch == '2.13.0' else UPSTREAM), torch=torch)
    plant(torch=WORKING_TORCH.format(cuda=cuda, gpus=0).replace('2.13.0', torch))
    monkeypatch.setattr(doctor, 'has_nvidia_gpu', lambda: True)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    assert doctor.check_gpu().fix.removeprefix('pip install --force-reinstall ') == fix


@pytest.mark.parametrize('missing', ['', *UPSTREAM, 'torch', 'numpy'])
def test_no_advice_leads_away_from_upstream(missing, installed, monkeypatch):
    """Whatever cannot be imported next to upstream's packages, those stay, and so do the torch and NumPy they need."""
    versions = {**UPSTREAM, 'torch': '2.1.2', 'numpy': '1.26.4', 'setuptools': '69.5.1'}
    installed(**{name: version for name, version in versions.items() if name != missing})
    monkeypatch.setattr(doctor, 'has_nvidia_gpu', lambda: True)
    for module in ('torch', 'numpy', 'cv2', 'ftfy', 'mmengine', 'mmcv', 'mmcv._ext', 'mmdet', 'mmseg', 'other'):
        error = f'ModuleNotFoundError: No module named {module!r}'
        monkeypatch.setattr(doctor, 'probe', lambda code, error=error: (False, error))
        fixes = [check().fix for check in doctor.CHECKS]
        assert sum('pip install' in fix for fix in fixes) >= 5
        for fix in fixes:
            assert not re.search("onedl|uninstall|torch>|install '?(mmcv|torch|numpy|mm[a-z]*)'?$", fix), fix
            assert 'opencv-python' not in fix or "'numpy<2'" in fix or '--no-deps' in fix


def test_mix_of_upstream_and_forks_and_missing_packages(installed):
    installed(**FORKS)
    assert doctor.check_stack().state == 'ok'
    installed(**UPSTREAM)
    assert doctor.check_stack().state == 'ok'
    installed(**FORKS, mmcv='2.1.0')
    assert is_broken(doctor.check_stack(), 'onedl-mmcv 2.3.6', 'pip uninstall -y mmengine')
    installed(**UPSTREAM, onedl_mmengine='0.10.12', torch='2.1.2')
    line = doctor.check_stack()
    assert is_broken(line, 'onedl-mmengine 0.10.12', 'pip uninstall -y onedl-mmengine')
    assert line.fix.endswith("'mmcv>=2.0.0,<2.2.0' && pip install --force-reinstall --no-deps 'mmengine<1' 'mmdet<4' "
                             "'mmsegmentation<2'")  # fmt: skip
    installed(mmengine='0.10.7', mmdet='3.3.0', torch='2.6.0')
    line = doctor.check_stack()
    assert is_broken(
        line, 'mmcv, mmsegmentation not installed', "--force-reinstall 'mmcv>=2.0.0,<2.2.0' && pip install"
    )
    assert line.fix.endswith("pip install 'mmsegmentation<2'")
    installed(torch='2.1.2')
    assert is_broken(doctor.check_stack(), 'not installed', f"pip install -e '{ROOT}[openmmlab]' 'numpy<2'")
    installed()
    assert is_broken(doctor.check_stack(), 'not installed', f"pip install -e '{ROOT}[onedl]'")
    installed(**{name: FORKS[name] for name in ('onedl_mmengine', 'onedl_mmdetection')})
    line = doctor.check_stack()
    assert is_broken(line, 'onedl-mmcv, onedl-mmsegmentation not installed', 'MMCV_WITH_OPS=1 pip install')
    assert line.fix.endswith('onedl-mmcv && pip install onedl-mmsegmentation')


def test_mmcv_version(installed):
    installed(**UPSTREAM)
    assert doctor.check_mmcv_version().state == 'ok'
    installed(**FORKS)
    assert doctor.check_mmcv_version().state == 'ok'
    installed(**{**UPSTREAM, 'mmcv': '2.2.0'})
    assert is_broken(doctor.check_mmcv_version(), 'mmcv 2.2.0', "'mmcv>=2.0.0,<2.2.0'")


@pytest.mark.parametrize(
    ('error', 'text', 'fix'),
    [
        ('ModuleNotFoundError("No module named \'mmcv._ext\'")', 'is installed without them', 'onedl-mmcv'),
        ('ImportError("/x/_ext.so: undefined symbol: _ZN3c1017")', 'for another version of torch', 'onedl-mmcv'),
        ('ModuleNotFoundError("No module named \'addict\'")', 'addict', 'pip install addict'),
    ],
)
def test_mmcv_operators(error, text, fix, plant, installed):
    installed(**FORKS)
    plant(torch=WORKING_TORCH.format(cuda=None, gpus=0), mmcv='', mmcv__ops=f'raise {error}')
    line = doctor.check_ops()
    assert is_broken(line, text, fix)
    assert ('MMCV_WITH_OPS=1' in line.fix) == ('addict' not in fix)


def test_mmcv_operators_for_cpus_on_a_machine_with_a_gpu(plant, installed):
    installed(**UPSTREAM)
    plant(torch=WORKING_TORCH.format(cuda='12.6', gpus=1), mmcv='')
    plant(mmcv__ops='get_compiling_cuda_version = lambda: "not available"')
    assert is_broken(doctor.check_ops(), 'for CPUs only', 'FORCE_CUDA=1 MMCV_WITH_OPS=1 pip install')
    plant(mmcv__ops='get_compiling_cuda_version = lambda: "12.6"')
    assert doctor.check_ops().state == 'ok'


def test_weights_only(installed):
    installed(**UPSTREAM, torch='2.5.1')
    assert doctor.check_weights_only().state == 'ok'
    installed(**FORKS, torch='2.13.0+cpu')
    assert doctor.check_weights_only().state == 'ok'
    installed(**UPSTREAM, torch='2.6.0')
    line = doctor.check_weights_only()
    assert (line.state, 'mmengine 0.10.7 with torch 2.6.0' in line.text) == ('note', True)
    assert 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1' in line.fix


def test_pkg_resources(plant, installed):
    plant(pkg_resources='raise ModuleNotFoundError("No module named \'pkg_resources\'")')
    installed(**UPSTREAM, setuptools='82.0.0')
    assert is_broken(doctor.check_pkg_resources(), 'setuptools 82.0.0', "pip install 'setuptools<82'")
    installed(**FORKS, setuptools='82.0.0')
    assert doctor.check_pkg_resources().state == 'note'


def test_imports(plant, installed):
    installed(**FORKS)
    plant(mmdet='raise AssertionError("MMCV==2.2.0 is used but incompatible")')
    assert is_broken(doctor.check_imports(), 'MMCV==2.2.0 is used', '[onedl]')
    plant(mmdet='', mmdet__models='import ftfy_that_is_not_there')
    assert is_broken(doctor.check_imports(), 'ftfy_that_is_not_there', 'pip install ftfy_that_is_not_there')


def test_package(plant, monkeypatch):
    plant(pvt_mm='raise ModuleNotFoundError("No module named \'pvt_mm\'")')
    assert is_broken(doctor.check_package(), 'pvt_mm', f'pip install --no-build-isolation --no-deps -e {ROOT}')


def test_writable(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    assert doctor.check_writable().state == 'ok'
    Path('file').touch()
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'file/cache'))
    assert is_broken(doctor.check_writable(), 'file/cache cannot be written', 'export TORCH_HOME=PATH')
    Path('work_dirs').touch()
    assert is_broken(doctor.check_writable(), 'work_dirs cannot be written', '--work-dir PATH')


def test_disk_and_shared_memory(monkeypatch):
    usage = namedtuple('usage', 'free')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage(2e9))
    assert is_broken(doctor.check_disk(), '2.0 GB free', '--work-dir PATH')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage(6.4e7))
    if os.path.isdir('/dev/shm'):
        assert doctor.check_shared_memory().state == 'note'
        assert '0.06 GB' in doctor.check_shared_memory().text


def test_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = doctor.check_data()
    assert (line.state, line.fix) == ('note', 'tools/make_shapes.py data/shapes')
    for folder in doctor.DATA.values():
        Path(folder).mkdir(parents=True)
    assert doctor.check_data().state == 'ok'


def test_every_check_is_tested():
    tested = Path(__file__).read_text()
    assert len(doctor.CHECKS) == 15
    assert [check.__name__ for check in doctor.CHECKS if f'doctor.{check.__name__}()' not in tested] == []


def test_exit_code_and_summary(monkeypatch, capsys):
    lines = {state: doctor.Line(state, state, 'text', 'command') for state in ('ok', 'note', 'broken')}
    for shown, code in ((['ok', 'note'], 0), (['ok', 'broken'], 1)):
        monkeypatch.setattr(doctor, 'CHECKS', [lambda state=state: lines[state] for state in shown])
        assert doctor_tool.main([]) == code
        out = capsys.readouterr().out.splitlines()
        assert json.loads(out[-1])['broken'] == [name for name in shown if name == 'broken']
        assert out[1] == '        fix: command'
    with pytest.raises(SystemExit) as stop:
        doctor_tool.main(['--quick'])
    assert stop.value.code == 2


def test_it_runs_without_any_library(plant):
    """It imports no library itself, and finds every broken one."""
    broken = ('torch', 'numpy', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'rich', 'cv2', 'pkg_resources')
    plant(**{name: f'raise ImportError("{name} is broken")' for name in broken})
    done = subprocess.run([sys.executable, ROOT / 'tools/doctor.py'], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, '')
    found = json.loads(done.stdout.splitlines()[-1])['broken']
    wanted = {'torch', 'GPU', 'NumPy', 'MMCV operators', 'MMDetection and MMSegmentation', 'pvt_mm'}
    assert wanted <= set(found)


@pytest.mark.parametrize(('tool', 'module'), [('train', 'torch'), ('test', 'torch'), ('test', 'mmdet')])
def test_train_and_test_name_it(tool, module, plant):
    plant(**{module: 'raise AssertionError("it is broken")'})
    if module == 'mmdet':  # its base configs are found without importing it
        Path('site/mmdet/.mim').symlink_to(Path(find_spec('mmdet').origin).parent / '.mim')
    config = str(ROOT / 'configs/demo/retinanet_shapes.py')
    arguments = [config] if tool == 'train' else [config, config]
    done = subprocess.run([sys.executable, ROOT / f'tools/{tool}.py', *arguments], capture_output=True, text=True)
    assert done.returncode == (2 if module == 'mmdet' else 1)
    assert re.search(r'^error: .*AssertionError: it is broken\W+tools/doctor.py says', done.stderr, re.MULTILINE)
    assert 'Traceback' not in done.stderr
    assert not Path('work_dirs').exists()


@pytest.mark.parametrize('made', [None, '/there/bin/python'])
def test_a_bare_python_gets_one_command(made, plant, installed, monkeypatch):
    missing = 'raise ModuleNotFoundError("No module named {0!r}", name={0!r})'
    plant(**{name: missing.format(name) for name in ('torch', 'numpy', 'mmcv', 'mmdet', 'mmseg', 'pvt_mm')})
    installed()
    monkeypatch.setattr(doctor, 'made_environment', lambda: made)
    lines = list(doctor.examine())
    broken = [line.name for line in lines if line.state == 'broken']
    assert broken[:4] == ['torch', 'GPU', 'NumPy', 'OpenMMLab']
    (fix,) = [line.fix for line in lines if line.state == 'broken' and line.fix]
    start = (
        f'use {made}, which make setup has installed'
        if made
        else "make setup; or, into this Python: pip install 'torch>=2.6'"
    )
    assert fix.startswith(start)
    installed(torch='2.6.0')
    assert len([line.fix for line in doctor.examine() if line.state == 'broken' and line.fix]) > 3
