"""The statuses of trials, read from their folders and logs."""

import os
import signal
import time
from pathlib import Path

import pytest

from pvt_mm.sweep.executors import Local, Slurm
from pvt_mm.sweep.spec import Sweep, Trial
from pvt_mm.sweep.trials import Status, Trials, last_lines, train_command
from pvt_mm.utils.errors import InputError
from pvt_mm.utils.files import read_json, write_json

EPOCHS = Trial('pvt_s', 'pvt_s.py', (), 0, 12)
ITERATIONS = Trial('fpn', 'fpn.py', (), 0, None)
SWEEP = Sweep('two', 'Two', 'coco/bbox_mAP', 'greater', (EPOCHS, ITERATIONS))
LOG = """\
11/26 12:00:00 - mmengine - INFO - Epoch(train)   [1][ 50/100]  lr: 1.0000e-04  eta: 1 day, 2:03:04  time: 1.0
11/26 12:00:00 - mmengine - INFO - Epoch(val)   [1][10/10]    coco/bbox_mAP: 0.1230  coco/bbox_mAP_50: 0.9990  time: 1.0
11/26 12:00:00 - mmengine - INFO - Epoch(train)   [2][ 50/100]  lr: 1.0000e-04  eta: 0:03:04  time: 1.0
"""


@pytest.fixture
def alive(monkeypatch) -> dict[str, str]:
    """Replaces the states of jobs, by id, of both executors."""
    states = {}
    for executor in (Local, Slurm):
        monkeypatch.setattr(executor, 'alive', lambda jobs: {job: states[job] for job in jobs if job in states})
    return states


@pytest.fixture
def trials(tmp_path) -> Trials:
    return Trials(SWEEP, tmp_path, Path('tools/train.py'))


def submitted(trials: Trials, trial: Trial, executor: str = 'local', log: str = '', outcome: str | None = None) -> None:
    folder = trials.folder / trial.name
    folder.mkdir()
    identity = dict(config=trial.config, options=[], seed=trial.seed, flags=[])
    write_json(folder / 'submitted.json', dict(trial=identity, executor=executor, job='7', devices=''))
    (folder / 'train.log').write_text(log)
    if outcome:
        write_json(folder / 'outcome.json', dict(state=outcome))


def test_new(trials, alive):
    assert trials.statuses() == {EPOCHS: Status('new'), ITERATIONS: Status('new')}


@pytest.mark.parametrize('executor', ['local', 'slurm'])
def test_progress_of_a_running_trial(executor, trials, alive):
    submitted(trials, EPOCHS, executor, LOG, outcome='running')
    alive['7'] = 'running'
    status = trials.statuses()[EPOCHS]
    assert status == Status('running', executor, '7', '', 'epoch 2/12', 0.123, '0:03:04')


def test_remaining_time_of_days(trials, alive):
    submitted(trials, EPOCHS, log=LOG.splitlines()[0])
    alive['7'] = 'running'
    status = trials.statuses()[EPOCHS]
    assert (status.progress, status.metric, status.eta) == ('epoch 1/12', None, '1 day, 2:03:04')


def test_progress_in_iterations(trials, alive):
    submitted(trials, ITERATIONS, log='mmengine - INFO - Iter(train) [ 1000/80000]  lr: 1e-4  eta: 9:00:00  time: 1')
    alive['7'] = 'running'
    assert trials.statuses()[ITERATIONS].progress == '1000/80000'


def test_interrupted_if_the_job_has_ended_without_an_outcome(trials, alive):
    submitted(trials, EPOCHS, log=LOG, outcome='running')
    status = trials.statuses()[EPOCHS]
    assert (status.state, status.eta) == ('interrupted', '')


@pytest.mark.parametrize('outcome', ['finished', 'failed'])
def test_an_outcome_overrides_the_state_of_the_job(outcome, trials, alive):
    submitted(trials, EPOCHS, log=LOG, outcome=outcome)
    alive['7'] = 'running'  # Slurm has not removed it, or another process has its id
    assert trials.statuses()[EPOCHS].state == outcome


def test_run_submits_what_has_not_finished(trials, alive):
    """It skips finished trials, restarts failed ones, and keeps a trial that is rejected while another runs."""
    third = Trial('late', 'late.py', (), 0, None)
    trials = Trials(Sweep('three', '', 'mIoU', 'greater', (*SWEEP.trials, third)), trials.folder, Path('train.py'))
    submitted(trials, EPOCHS, outcome='finished')
    submitted(trials, ITERATIONS, outcome='failed')
    started, shown = [], []

    class Executor:
        name, limit, interval, gpus = 'local', 2, 0.0, 0

        def environment(self, taken):
            return {'CUDA_VISIBLE_DEVICES': str(len(taken))}

        def submit(self, job, name):
            if alive:
                raise InputError('a limit on jobs')
            started.append((name, job.environment))
            alive[name] = 'running'
            return name

    def show(statuses):
        shown.append([status.state for status in statuses.values()])
        for name in list(alive):
            write_json(trials.folder / name.split('/')[1] / 'outcome.json', dict(state='finished'))
            del alive[name]

    trials.executor = Executor()
    statuses = trials.run(show)
    assert [name for name, _ in started] == ['three/fpn-seed0', 'three/late-seed0']
    assert [environment['CUDA_VISIBLE_DEVICES'] for _, environment in started] == ['0', '1']
    assert shown[:2] == [['finished', 'running', 'waiting'], ['finished', 'finished', 'running']]
    assert {status.state for status in statuses.values()} == {'finished'}


def test_ctrl_c_waits_until_a_job_is_recorded(trials, alive, monkeypatch, capsys):
    class Executor:
        name, limit, interval, gpus = 'local', 1, 0.0, 0

        def environment(self, taken):
            return {}

        def submit(self, job, name):
            alive['9'] = 'running'
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
            return '9'

        def cancel(self, jobs):
            return f'{list(jobs)} stopped'

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    trials.executor = Executor()
    try:
        with pytest.raises(KeyboardInterrupt):
            trials.run(lambda statuses: None)
    finally:
        signal.signal(signal.SIGINT, before)
    assert read_json(trials.folder / EPOCHS.name / 'submitted.json')['job'] == '9'
    assert "['9'] stopped, 1 not started." in capsys.readouterr().err


def test_a_folder_of_another_trial_is_an_error(trials, tmp_path):
    submitted(trials, EPOCHS)
    other = Trial('pvt_s', 'pvt_s.py', ('optim_wrapper.optimizer.lr=1',), 0, 12)
    with pytest.raises(InputError, match='was run with options'):
        Trials(Sweep('two', 'Two', 'coco/bbox_mAP', 'greater', (other,)), tmp_path, Path('tools/train.py'))


def test_several_gpus_use_torchrun():
    trial = Trial('a', 'a.py', ('x=1',), 3, None)
    one, four = (train_command(trial, Path('out'), Path('train.py'), gpus, ['--amp']) for gpus in (1, 4))
    rest, pytorch = ['train.py', 'a.py', '--work-dir', 'out', '--seed', '3'], ['--launcher', 'pytorch']
    assert one[1:] == ['-u', *rest, '--amp', '--cfg-options', 'x=1']
    launch = ['launch.py', '--standalone', '--local_addr=127.0.0.1', '--nproc_per_node=4']
    assert four[1:] == [*launch, *rest, *pytorch, '--amp', '--cfg-options', 'x=1']
    nodes = train_command(trial, Path('out'), Path('train.py'), 16, ['--amp'], nodes=2)  # each of Slurm's tasks runs it
    assert nodes[1:] == ['-u', *rest, '--launcher', 'slurm', '--amp', '--cfg-options', 'x=1']


def test_last_lines_of_the_last_training(tmp_path):
    (tmp_path / 'train.log').write_text('$ train\nold\n$ train --resume\n\nfirst\nsecond\n')
    assert last_lines(tmp_path) == ['first', 'second']
    assert last_lines(tmp_path, count=1) == ['second']


def test_last_lines_of_the_job_if_training_never_started(tmp_path):
    (tmp_path / 'submitit').mkdir()
    for age, name in enumerate(('1_0_log.err', '2_0_log.err')):
        (tmp_path / 'submitit' / name).write_text(f'{name} broke\n')
        os.utime(tmp_path / 'submitit' / name, (age, age))
    assert last_lines(tmp_path) == ['1_0_log.err broke', '2_0_log.err broke']
