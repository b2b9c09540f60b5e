"""Sweeps on this machine: a training that is interrupted and resumed, trials that fail, and the report."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pvt_mm.sweep.executors import Slurm
from pvt_mm.sweep.spec import Sweep, Trial
from pvt_mm.sweep.trials import Trials
from tests.conftest import ROOT, TINY_ARCH
from tools import sweep as sweep_tool

CONFIG = """
_base_ = '{root}/configs/demo/retinanet_shapes.py'
backbone = dict(arch=dict(_delete_=True, **{arch}), drop_path_rate=0.0)
model = dict(backbone=backbone, neck=dict(in_channels=[8, 16, 24, 32]), test_cfg=dict(score_thr=0.0, max_per_img=5))
loading = dict(batch_size=6, num_workers=0, persistent_workers=False)
train_dataloader = loading
val_dataloader = loading
train_cfg = dict(max_epochs=2, val_interval=2)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(max_keep_ckpts=2))
"""
# Waits before its second epoch for a file.
WAITING = """
import time
from pathlib import Path
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from pvt_mm.engine.hooks.checkpoint_hook import CheckpointHook

@HOOKS.register_module()
class WaitForGo(Hook):
    def before_train_epoch(self, runner):
        stop = next(hook.stop for hook in runner.hooks if isinstance(hook, CheckpointHook))
        while runner.epoch == 1 and not Path('go').exists() and not stop.name:
            time.sleep(0.1)
"""
SWEEP = """
metric = 'coco/bbox_mAP'
configs = ['tiny.py']
"""


@pytest.fixture
def sweep(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PYTHONPATH', f'{ROOT}:{tmp_path}')
    monkeypatch.syspath_prepend(tmp_path)
    Path('wait_for_go.py').write_text(WAITING)
    hook = "custom_imports = dict(imports=['wait_for_go'])\ncustom_hooks = [dict(type='WaitForGo')]\n"
    Path('tiny.py').write_text(CONFIG.format(root=ROOT, arch=TINY_ARCH) + hook)
    Path('one.py').write_text(SWEEP)
    return 'one.py'


def wait_for(path: Path) -> None:
    until = time.time() + 240
    while not path.exists():
        assert time.time() < until, f'{path} is not written'
        time.sleep(0.1)


@pytest.mark.timeout(600)
def test_an_interrupted_trial_is_resumed(sweep, shapes, capsys):
    data, work_dir = ['--cfg-options', f'data_root={shapes}'], Path('work_dirs/sweeps/one')
    trial = work_dir / 'tiny-seed0'
    process = subprocess.Popen(
        [sys.executable, str(ROOT / 'tools/sweep.py'), sweep, *data],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # it is ignored in background processes
        start_new_session=True,
    )
    wait_for(trial / 'outcome.json')
    assert sweep_tool.main([sweep, *data]) == 2
    assert 'another tools/sweep.py is running the sweep in work_dirs/sweeps/one' in capsys.readouterr().err
    wait_for(trial / 'last_checkpoint')
    os.killpg(process.pid, signal.SIGINT)  # to the whole process group, as a terminal does
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert '1 running stopped, 0 not started. Run the same command to continue.' in err
    assert re.sub(r'^[\d:]+ ', '', out.splitlines()[0]) == 'tiny-seed0: running'

    assert sweep_tool.main([sweep, '--report', *data]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (report['interrupted'], report['best']) == (1, None)
    assert '- tiny-seed0: interrupted' in (work_dir / 'sweep.md').read_text()

    Path('go').touch()
    assert sweep_tool.main([sweep, *data]) == 0
    results = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (results['finished'], results['best']) == (1, 'tiny')
    log = (trial / 'train.log').read_text().splitlines()
    assert [line.endswith(' --resume') for line in log if line.startswith('$ ')] == [False, True]
    runs = []
    for scalars in sorted(trial.glob('*/vis_data/scalars.json')):
        runs.append([json.loads(line)['step'] for line in scalars.read_text().splitlines() if '"loss"' in line])
    assert len(runs) == 2
    assert [step for run in runs for step in run] == [1, 2, 3, 4]  # 12 images, 6 a step: none is repeated
    with open(work_dir / 'sweep.csv') as file:
        (row,) = csv.DictReader(file)
    assert (row['state'], row['progress']) == ('finished', 'epoch 2/2')
    assert float(row['coco/bbox_mAP']) == results['means']['tiny']
    assert (work_dir / 'sweep.png').stat().st_size > 10_000


@pytest.fixture
def two_trials(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path('config.py').write_text("model = dict(type='PVT')")
    Path('two.py').write_text(
        "metric = 'mIoU'\nconfigs = ['config.py']\noptions = dict(bad=['model.type=BAD'], good=[])"
    )
    return 'two.py'


def test_failed_trials_are_shown_and_restarted(two_trials, tmp_path, monkeypatch, capsys):
    assert sweep_tool.main([two_trials, '--dry-run', '--cfg-options', 'model.arch=tiny', '--', '--amp']) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line for line in out if line.endswith('(new)')] == ['config-bad-seed0 (new)', 'config-good-seed0 (new)']
    assert out[1].split()[2:] == [
        *(str(ROOT / 'tools/train.py'), 'config.py', '--work-dir', 'work_dirs/sweeps/two/config-bad-seed0'),
        *('--seed', '0', '--amp', '--cfg-options', 'model.arch=tiny', 'model.type=BAD'),
    ]
    assert (out[4], json.loads(out[-1])) == ('each trial runs here on 0 GPUs, at most 1 at a time', {'trials': 2})
    assert not Path('work_dirs').exists()

    monkeypatch.setattr(sweep_tool, '__file__', str(tmp_path / 'sweep.py'))
    Path('train.py').write_text("import sys\nif 'model.type=BAD' in sys.argv: sys.exit('error: the data is missing')\n")
    starts = []
    for _ in range(2):
        assert sweep_tool.main([two_trials, '--jobs', '2']) == 1
        out = capsys.readouterr().out.splitlines()
        failed = out.index('config-bad-seed0 failed, work_dirs/sweeps/two/config-bad-seed0/train.log:')
        assert out[failed + 1] == '  error: the data is missing'
        results = json.loads(out[-1])
        assert (results['finished'], results['failed'], results['best']) == (1, 1, None)
        starts.append([path.read_text().count('$ ') for path in sorted(Path().glob('work_dirs/*/*/*/train.log'))])
    assert starts == [[1, 1], [2, 1]]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['gone.py'], 'the config gone.py does not exist'),
        (['two.py', '--executor', 'slurm'], 'sbatch not found'),
        (['two.py', '--cfg-options', 'model.backbone'], "takes KEY=VALUE pairs, got 'model.backbone"),
        (['two.py', '--work-dir', 'two.py/x'], 'two.py/x: Not a directory'),
        (['two.py', '--', '--amp', '--seed', '3'], '-- --seed: the sweep sets it for each trial'),
        (['two.py', '--', '--work-dir=x'], '-- --work-dir=x: the sweep sets it for each trial'),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(arguments, message, two_trials, monkeypatch, capsys):
    monkeypatch.setenv('PATH', os.path.dirname(sys.executable))
    assert sweep_tool.main(arguments) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert error[0].startswith('error: ')
    assert message in error[0]


SLURM = ['--executor', 'slurm', '--nodes', '2', '--gpus', '16', '--partition', 'gpu', '--time', '2-00:00:00']


def test_a_dry_run_shows_what_a_job_asks_slurm_for(two_trials, monkeypatch, capsys):
    monkeypatch.setenv('PATH', os.path.dirname(sys.executable))
    assert sweep_tool.main([two_trials, '--dry-run', *SLURM, '--slurm', 'account=vision']) == 0
    out, error = capsys.readouterr()
    assert out.splitlines()[1].split()[-3:-1] == ['slurm', '--cfg-options']
    assert out.splitlines()[4] == (
        'each job: sbatch --partition=gpu --time=2880 --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 '
        '--cpus-per-task=5 --requeue --open-mode=append --account=vision'
    )
    assert 'note: --executor slurm: sbatch not found' in error  # only a real run needs it


@pytest.mark.parametrize('dry_run', [[], ['--dry-run']])
@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        ([*SLURM, '--gpus', '9'], 'with --nodes 2: it must be a multiple of the nodes'),
        ([*SLURM, '--slurm', 'cpus-per-task=x'], '--slurm cpus-per-task=x: it must be an integer of at least 1'),
        (['--gpus', '64'], '--jobs 1 with --gpus 64 needs 64 GPUs'),
    ],
)
def test_a_dry_run_refuses_what_a_run_does(flags, message, dry_run, two_trials, capsys):
    assert sweep_tool.main([two_trials, *flags, *dry_run]) == 2
    assert message in capsys.readouterr().err


def test_note_about_the_batch_size(tmp_path, capsys):
    trial = Trial('a', 'a.py', (), 0, 12, gpus=8.0)

    def note(gpus: int, *flags: str) -> str:
        swept = Sweep('one', 'One', 'mIoU', 'greater', (trial,))
        sweep_tool.warn_of_batch_size(Trials(swept, tmp_path, Path('train.py'), Slurm(gpus=gpus), flags))
        return capsys.readouterr().err

    assert note(1).endswith('for the batch size of 8 GPUs, and a trial has 1: add --gpus 8, or -- --auto-scale-lr\n')
    assert note(1, '--auto-scale-lr') == note(8) == ''


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--time', '90:00'], '90:00 is not a time limit'),
        (['--jobs', '0'], '0 is not an integer of at least 1'),
        (['--gpus', '-1'], '-1 is not an integer of at least 0'),
        (['--executor', 'slurm', '--slurm', 'mem'], 'mem is not KEY=VALUE'),
        (['--partition', 'gpu'], 'need --executor slurm'),
        (['--dry-run', '--report'], 'not allowed with'),
    ],
)
def test_bad_usage_exits_with_2(flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        sweep_tool.main(['two.py', *flags])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(('text', 'expected'), [('90', 90), ('1:30:00', 90), ('2-00:00:00', 2880), ('00:05:00', 5)])
def test_time_limits_are_minutes(text, expected):
    assert sweep_tool.minutes(text) == expected
