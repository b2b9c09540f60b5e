"""Executors: GPUs and CPU cores of a trial, states of jobs, and cancelling, on this machine and under Slurm."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pvt_mm.sweep.executors import Local, Slurm
from pvt_mm.sweep.job import Job
from pvt_mm.utils.errors import InputError
from pvt_mm.utils.files import read_json
from tests.test_sweep.test_job import training


@pytest.fixture
def gpus(monkeypatch):
    def see(count: int, visible: str | None = None) -> None:
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: count)
        monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
        monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
        if visible is not None:
            monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)

    return see


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Fakes Slurm's programs: each appends its arguments to ``calls`` and prints its ``.out`` file."""
    for name in ('sbatch', 'squeue', 'scancel', 'srun'):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/calls\ncat {tmp_path}/{name}.out\n')
        (tmp_path / name).chmod(0o755)
        (tmp_path / f'{name}.out').touch()
    monkeypatch.setenv('PATH', f'{tmp_path}:/usr/bin:/bin')
    return tmp_path


def test_parallel_trials_have_different_gpus(gpus):
    gpus(4)
    local = Local(gpus=2)
    assert local.limit == 2
    first = local.environment(set())
    second = local.environment({first['CUDA_VISIBLE_DEVICES']})
    assert (first, second) == ({'CUDA_VISIBLE_DEVICES': '0,1'}, {'CUDA_VISIBLE_DEVICES': '2,3'})
    assert local.environment({'2,3'}) == first  # after the first has ended


def test_only_visible_gpus_are_assigned(gpus):
    gpus(2, visible='5,7')
    assert [Local().environment(taken)['CUDA_VISIBLE_DEVICES'] for taken in (set(), {'5'})] == ['5', '7']
    gpus(2, visible='5,7,-1,2')  # CUDA ignores the ids after an invalid one
    assert Local().devices == ['5', '7']
    assert Local(gpus=0).limit == 1


def test_trials_on_cpus_share_the_cores(gpus, monkeypatch):
    gpus(0)
    monkeypatch.setattr('os.cpu_count', lambda: 8)
    assert Local().environment(set()) == {'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '8'}
    assert Local(jobs=2).environment(set())['OMP_NUM_THREADS'] == '4'
    monkeypatch.setenv('OMP_NUM_THREADS', '3')
    assert Local(jobs=2).environment(set())['OMP_NUM_THREADS'] == '3'


def test_more_gpus_than_the_machine_has(gpus):
    gpus(3)
    with pytest.raises(InputError, match='--jobs 2 with --gpus 2 needs 4 GPUs; 3 are visible'):
        Local(jobs=2, gpus=2)


def test_stopping_waits_until_training_has_saved(gpus, tmp_path, capsys):
    gpus(0)
    local = Local()
    job = local.submit(Job(training(saves=2, code=75), str(tmp_path), str(tmp_path)), 'a trial')
    until = time.time() + 60
    while not (tmp_path / 'ready').exists():
        assert time.time() < until
        time.sleep(0.1)
    assert local.alive([job]) == {job: 'running'}
    assert local.cancel({job: 'running'}) == '1 running stopped'
    assert (tmp_path / 'saved').exists()
    assert 'stopping 1 running: writing checkpoints' in capsys.readouterr().err
    assert local.alive([job]) == {}
    assert read_json(tmp_path / 'outcome.json')['state'] == 'running'  # interrupted, neither finished nor failed


def test_a_process_of_another_program_is_not_a_job(gpus):
    gpus(0)
    process = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
    try:
        until = time.time() + 10
        while b'sleep' not in Path(f'/proc/{process.pid}/cmdline').read_bytes():
            assert time.time() < until
        assert Local.alive([str(process.pid)]) == {}  # its id was that of an earlier job
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_nothing_to_stop_prints_nothing(gpus, capsys):
    gpus(0)
    assert Local().cancel({}) == '0 running stopped'
    assert not capsys.readouterr().err


def test_a_slurm_job_has_cores_for_its_gpus(slurm):
    assert Slurm(gpus=8).parameters | dict(setup=None, additional_parameters=None) == dict(
        partition=None,
        time=1440,
        nodes=1,
        ntasks_per_node=1,
        cpus_per_task=40,
        gpus_per_node=8,
        srun_args=['--kill-on-bad-exit=1'],
        setup=None,
        additional_parameters=None,
    )
    none = Slurm('cpu', gpus=0, minutes=30)
    assert (none.parameters['cpus_per_task'], none.parameters['partition'], none.parameters['time']) == (1, 'cpu', 30)
    assert none.parameters['gpus_per_node'] is None


def test_a_slurm_job_on_several_nodes_is_a_task_for_each_gpu(slurm):
    parameters = Slurm(gpus=16, nodes=2).parameters
    names = ('nodes', 'ntasks_per_node', 'gpus_per_node', 'cpus_per_task')
    assert [parameters[name] for name in names] == [2, 8, 8, 5]
    parameters = Slurm(gpus=0, nodes=2, options={'cpus-per-task': '3'}).parameters
    assert [parameters[name] for name in names] == [2, 1, None, 3]
    with pytest.raises(InputError, match='--gpus 9 with --nodes 2: it must be a multiple of the nodes'):
        Slurm(gpus=9, nodes=2)


def test_options_of_sbatch_override_defaults(slurm):
    options = {'cpus-per-task': '12', 'account': 'vision', 'requeue': False}
    parameters = Slurm(gpus=1, options=options).parameters
    assert parameters['cpus_per_task'] == 12
    assert parameters['additional_parameters'] == dict(requeue=False, open_mode='append', account='vision')


def test_the_submission_to_slurm(slurm, tmp_path):
    (slurm / 'sbatch.out').write_text('Submitted batch job 12\n')
    executor = Slurm('gpu', gpus=2, minutes=90, options=dict(account='vision'))
    assert executor.submit(Job(['true'], str(tmp_path), str(tmp_path)), 'two/a-seed0') == '12'
    lines = (tmp_path / 'submitit/12_submission.sh').read_text().splitlines()
    expected = ['requeue', 'open-mode=append', 'time=90', 'gpus-per-node=2', 'cpus-per-task=10', 'partition=gpu']
    for option in [*expected, 'account=vision', 'nodes=1', 'ntasks-per-node=1', 'job-name=two/a-seed0']:
        assert f'#SBATCH --{option}' in lines
    assert 'export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK' in lines


def test_a_rejection_by_slurm_is_an_input_error(slurm, tmp_path):
    (slurm / 'sbatch').write_text('#!/bin/sh\necho "sbatch: error: invalid partition specified: gpu" >&2\nexit 1\n')
    with pytest.raises(InputError, match=r'Slurm rejects a: (?s:.*)invalid partition specified: gpu'):
        Slurm('gpu').submit(Job(['true'], str(tmp_path), str(tmp_path)), 'a')


def test_states_of_slurm_jobs(slurm):
    (slurm / 'squeue.out').write_text('1 RUNNING\n2 PENDING\n3 COMPLETED\n4 REQUEUED\n5 TIMEOUT\n6 COMPLETING\n')
    states = Slurm.alive([str(i) for i in range(1, 8)])
    assert states == {'1': 'running', '2': 'queued', '4': 'queued', '6': 'running'}


def test_jobs_count_as_running_if_slurm_does_not_answer(slurm):
    (slurm / 'squeue').write_text('#!/bin/sh\nexit 1\n')
    assert Slurm.alive(['1', '2']) == {'1': 'running', '2': 'running'}
    assert Slurm.alive([]) == {}


def test_only_queued_slurm_jobs_are_cancelled(slurm):
    assert Slurm(gpus=0).cancel({'1': 'running', '2': 'queued', '3': 'queued'}) == '2 queued cancelled, 1 still running'
    assert (slurm / 'calls').read_text().splitlines() == ['scancel --state=PENDING 2 3']


def test_running_slurm_jobs_are_not_cancelled(slurm):
    assert Slurm(gpus=0).cancel({'1': 'running'}) == '0 queued cancelled, 1 still running'
    assert not (slurm / 'calls').exists()
