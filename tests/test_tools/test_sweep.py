"""A sweep on this machine: a trial that fails, one that is interrupted and resumed, and the report."""

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
title = 'Two trials'
metric = 'coco/bbox_mAP'
configs = dict(tiny='tiny.py')
options = dict(lost=['train_dataloader.dataset.ann_file=lost.json'], held=[])
"""


@pytest.fixture
def sweep(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PYTHONPATH', f'{ROOT}:{tmp_path}')
    monkeypatch.syspath_prepend(tmp_path)
    Path('wait_for_go.py').write_text(WAITING)
    hook = "custom_imports = dict(imports=['wait_for_go'])\ncustom_hooks = [dict(type='WaitForGo')]\n"
    Path('tiny.py').write_text(CONFIG.format(root=ROOT, arch=TINY_ARCH) + hook)
    Path('two.py').write_text(SWEEP)
    return 'two.py'


def wait_for(condition, what: str) -> None:
    until = time.time() + 240
    while not condition():
        assert time.time() < until, what
        time.sleep(0.1)


def state(trial: str) -> str | None:
    path = Path('work_dirs/sweeps/two', trial, 'outcome.json')
    return json.loads(path.read_text())['state'] if path.exists() else None


@pytest.mark.timeout(600)
def test_an_interrupted_trial_is_resumed_and_a_failed_one_restarted(sweep, shapes, capsys):
    data, work_dir = ['--cfg-options', f'data_root={shapes}'], Path('work_dirs/sweeps/two')
    assert sweep_tool.main([sweep, '--dry-run', *data]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line for line in out if line.endswith('(new)')] == ['tiny-lost-seed0 (new)', 'tiny-held-seed0 (new)']
    assert out[1].split()[2:] == [
        *(str(ROOT / 'tools/train.py'), 'tiny.py', '--work-dir', f'{work_dir}/tiny-lost-seed0', '--seed', '0'),
        *('--cfg-options', f'data_root={shapes}', 'train_dataloader.dataset.ann_file=lost.json'),
    ]
    assert not Path('work_dirs').exists()

    # One at a time: the first fails because its annotations do not exist, the second is stopped after a checkpoint.
    process = subprocess.Popen(
        [sys.executable, str(ROOT / 'tools/sweep.py'), sweep, '--jobs', '1', *data],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # it is ignored in background processes
        start_new_session=True,
    )
    wait_for(lambda: state('tiny-lost-seed0'), 'the first trial does not start')
    assert sweep_tool.main([sweep, *data]) == 2
    assert 'another tools/sweep.py is running the sweep in work_dirs/sweeps/two' in capsys.readouterr().err
    wait_for((work_dir / 'tiny-held-seed0/last_checkpoint').exists, 'the second trial does not train')
    os.killpg(process.pid, signal.SIGINT)  # to the whole process group, as a terminal does
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert '1 running stopped, 0 not started. Run the same command to continue.' in err
    lines = [re.sub(r'^[\d:]+ ', '', line) for line in out.splitlines()]
    assert lines[:3] == ['tiny-lost-seed0: running', 'tiny-lost-seed0: failed', 'tiny-held-seed0: running']
    assert (state('tiny-lost-seed0'), state('tiny-held-seed0')) == ('failed', 'running')

    # The report so far, with the reason of the failure.
    assert sweep_tool.main([sweep, '--report', *data]) == 0
    out = capsys.readouterr().out
    assert f'{shapes}/lost.json does not exist' in out
    report = json.loads(out.splitlines()[-1])
    assert (report['failed'], report['interrupted'], report['best']) == (1, 1, None)
    assert '- tiny-held-seed0: interrupted' in (work_dir / 'sweep.md').read_text()

    # The same command restarts the failed trial and resumes the interrupted one.
    Path('go').touch()
    assert sweep_tool.main([sweep, '--jobs', '2', *data]) == 1
    results = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (results['finished'], results['failed'], results['best']) == (1, 1, 'tiny-held')
    for trial, resumed in (('tiny-lost-seed0', [False, False]), ('tiny-held-seed0', [False, True])):
        log = (work_dir / trial / 'train.log').read_text().splitlines()
        assert [line.endswith(' --resume') for line in log if line.startswith('$ ')] == resumed
    runs = []
    for scalars in sorted((work_dir / 'tiny-held-seed0').glob('*/vis_data/scalars.json')):
        runs.append([json.loads(line)['step'] for line in scalars.read_text().splitlines() if '"loss"' in line])
    assert len(runs) == 2
    assert [step for run in runs for step in run] == [1, 2, 3, 4]  # 12 images, 6 a step: none is repeated
    with open(work_dir / 'sweep.csv') as file:
        rows = list(csv.DictReader(file))
    assert [row['state'] for row in rows] == ['failed', 'finished']
    assert rows[1]['progress'] == 'epoch 2/2'
    assert float(rows[1]['coco/bbox_mAP']) == results['means']['tiny-held']
    assert (work_dir / 'sweep.png').stat().st_size > 10_000


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['gone.py'], 'the config gone.py does not exist'),
        (['two.py', '--gpus', '64'], '--jobs 1 with --gpus 64 needs 64 GPUs'),
        (['two.py', '--executor', 'slurm'], 'sbatch not found'),
        (['two.py', '--cfg-options', 'model.backbone'], "takes KEY=VALUE pairs, got 'model.backbone"),
        (['two.py', '--work-dir', 'two.py/x'], 'two.py/x: Not a directory'),
        (['two.py', '--', '--amp', '--seed', '3'], '-- --seed: the sweep sets it for each trial'),
        (['two.py', '--', '--work-dir=x'], '-- --work-dir=x: the sweep sets it for each trial'),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path('config.py').write_text("model = dict(type='PVT')")
    Path('two.py').write_text("metric = 'mIoU'\nconfigs = ['config.py']")
    monkeypatch.setenv('PATH', os.path.dirname(sys.executable))
    assert sweep_tool.main(arguments) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert error[0].startswith('error: ')
    assert message in error[0]


def test_note_about_the_batch_size(tmp_path, capsys):
    trial = Trial('a', 'a.py', (), 0, 12, gpus=8.0)

    def note(gpus: int, *flags: str) -> str:
        swept = Sweep('one', 'One', 'mIoU', 'greater', (trial,))
        sweep_tool.warn_of_batch_size(Trials(swept, tmp_path, Path('train.py'), flags=flags, gpus=gpus))
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
