"""From a config to a runner, and errors of other ranks."""

import argparse
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope

from pvt_mm.apis import launch
from pvt_mm.apis.launch import build_model, build_runner, prepare_config, report_lost_ranks
from pvt_mm.utils.errors import InputError


def arguments(config, **more) -> argparse.Namespace:
    return argparse.Namespace(
        **{'config': str(config), 'cfg_options': None, 'work_dir': None, 'launcher': 'none', 'local_rank': 0, **more}
    )


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch.torch.cuda, 'is_available', lambda: False)
    (tmp_path / 'small.py').write_text('model = dict()\n')
    return tmp_path / 'small.py'


def test_work_directories(path, tmp_path):
    assert prepare_config(arguments(path)).work_dir == 'work_dirs/small'
    assert prepare_config(arguments(path, work_dir='there/it/is')).work_dir == 'there/it/is'
    for data in ('.', 'a.json', 'annotations/a.json', f'../{tmp_path.name}/'):
        assert prepare_config(arguments(path, data=[data, 'b'])).work_dir == f'work_dirs/small_{tmp_path.name}'
    assert [file.name for file in tmp_path.iterdir()] == ['small.py']  # none is made before all checks
    with pytest.raises(InputError, match=r'the work directory small.py/x cannot be made: .*/small.py is a file'):
        prepare_config(arguments(path, work_dir='small.py/x'))


def test_gpu_that_torch_cannot_use(path, capsys, monkeypatch):
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    monkeypatch.setenv('LOCAL_RANK', '0')
    (path.parent / 'nvidia3').touch()  # as with docker run --gpus device=3
    monkeypatch.setattr(launch, 'NVIDIA_GPUS', str(path.parent / Path(launch.NVIDIA_GPUS).name))
    monkeypatch.setattr(launch.torch.version, 'cuda', None)
    prepare_config(arguments(path))
    warning = capsys.readouterr().err
    assert 'this machine has a GPU that torch' in warning
    assert 'it is built for the CPU' in warning
    assert warning.count('\n') == 1

    monkeypatch.setattr(launch.torch.version, 'cuda', '13.0')
    prepare_config(arguments(path))
    assert 'the driver may be too old for its CUDA 13.0' in capsys.readouterr().err

    for name, value in (('LOCAL_RANK', '1'), ('SLURM_LOCALID', '1'), ('CUDA_VISIBLE_DEVICES', '')):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            prepare_config(arguments(path))
    monkeypatch.setattr(launch, 'NVIDIA_GPUS', str(path / 'missing'))
    prepare_config(arguments(path))
    assert capsys.readouterr().err == ''


def test_errors_of_the_config_and_others(monkeypatch):
    with pytest.raises(InputError, match='the config cannot be built: KeyError: '):
        build_runner(Config(dict(runner_type='NoRunner')))

    message = r"\.__init__\(\) got .* 'linear'; RetinaNet takes backbone, neck, .*, init_cfg$"
    with DefaultScope.overwrite_default_scope('mmdet'), pytest.raises(InputError, match=message):
        build_model(Config(dict(model=dict(type='mmdet.RetinaNet', linear=True))))

    def fail(config):
        raise RuntimeError('CUDA out of memory')

    monkeypatch.setattr(launch.Runner, 'from_cfg', fail)
    with pytest.raises(RuntimeError, match='out of memory'):
        build_runner(Config({}))


def test_another_rank_that_exited(capsys, monkeypatch):
    monkeypatch.setattr(launch.time, 'sleep', lambda seconds: None)
    with pytest.raises(SystemExit) as stop, report_lost_ranks():
        raise RuntimeError('[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer')
    assert stop.value.code == 1
    assert capsys.readouterr().err == 'error: another rank exited; see its error above\n'
    with pytest.raises(RuntimeError, match='a bug'), report_lost_ranks():
        raise RuntimeError('a bug')


def test_machines_that_gloo_cannot_connect(path, monkeypatch):
    def fail(backend):
        raise RuntimeError(f'[third_party/gloo/gloo/transport/tcp/{reason}')

    monkeypatch.setattr(launch, 'join_ranks', lambda launcher: None)
    monkeypatch.setattr(launch.torch.distributed, 'init_process_group', fail)
    reason = 'device.cc:84] ifa != nullptr. Unable to find address for: eth7'
    with pytest.raises(InputError, match=r'cannot connect by gloo \(.* eth7\): set GLOO_SOCKET_IFNAME to the network'):
        prepare_config(arguments(path, launcher='pytorch'))
    reason = 'pair.cc:534] Connection closed by peer'  # report_lost_ranks reports it
    with pytest.raises(RuntimeError, match='closed by peer'):
        prepare_config(arguments(path, launcher='pytorch'))
