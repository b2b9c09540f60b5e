"""Ranks that find each other, and the first one's work for all."""

import argparse
import json
import os
import socket

import pytest
import torch
from mmengine.dist import init_dist
from torch import distributed

from pvt_mm.apis import ranks
from pvt_mm.apis.launch import prepare_config
from pvt_mm.apis.ranks import join_ranks, on_each_machine, on_first_rank
from pvt_mm.utils.errors import InputError

SCONTROL = '#!/bin/sh\n[ "$*" = "show hostnames n[7-8]" ] && printf "n7\\nn8\\n"\n'


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """Restores the variables and the connection, and does not connect."""
    for name in os.environ:
        if name.startswith(('SLURM_', 'OMPI_', 'MASTER_')) or name in ranks.VARIABLES['pytorch']:
            monkeypatch.delenv(name)
    monkeypatch.setattr(os, 'environ', os.environ.copy())
    monkeypatch.setattr(ranks, '_store', None)
    monkeypatch.setattr(distributed, 'rendezvous', lambda url: iter([(distributed.HashStore(), 0, 1)]))
    (tmp_path / 'scontrol').write_text(SCONTROL)
    (tmp_path / 'scontrol').chmod(0o755)
    os.environ['PATH'] = f'{tmp_path}:{os.environ["PATH"]}'
    return os.environ


def slurm(environment, job: int, step: int = 0) -> tuple[str, str]:
    for name in ('MASTER_ADDR', 'MASTER_PORT'):
        environment.pop(name, None)
    task = dict(PROCID=3, NTASKS=4, LOCALID=1, NODELIST='n[7-8]', JOB_ID=job, STEP_ID=step)
    environment.update({f'SLURM_{name}': str(value) for name, value in task.items()})
    join_ranks('slurm')
    return environment['MASTER_ADDR'], environment['MASTER_PORT']


def test_slurm_jobs_have_ports_of_their_own(environment):
    assert slurm(environment, job=48_211) == ('n7', '28211')
    assert [environment[name] for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')] == ['3', '4', '1']
    ports = {slurm(environment, job, step)[1] for job in (1, 2, 49_999, 50_000) for step in (0, 1, 2)}
    assert len(ports) == 4 * 3
    assert all(20_000 <= int(port) < 30_000 for port in ports)
    environment['MASTER_PORT'], environment['MASTER_ADDR'] = '1234', 'elsewhere'
    join_ranks('slurm')
    assert (environment['MASTER_ADDR'], environment['MASTER_PORT']) == ('elsewhere', '1234')


def test_mmengine_takes_the_port_on_a_gpu_too(environment, monkeypatch, tmp_path):
    joined, config = [], tmp_path / 'small.py'
    config.write_text('model = dict()\n')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'set_device', lambda device: None)
    monkeypatch.setattr(distributed, 'init_process_group', lambda **kwargs: joined.append(kwargs))
    slurm(environment, job=5)
    environment.pop('MASTER_PORT')
    options = dict(cfg_options=None, work_dir=str(tmp_path), local_rank=0)
    prepare_config(argparse.Namespace(config=str(config), launcher='slurm', **options))
    init_dist('slurm', 'nccl')
    assert joined == [dict(backend='nccl')]
    assert (environment['MASTER_ADDR'], environment['MASTER_PORT']) == ('n7', '20005')


@pytest.mark.parametrize(
    ('launcher', 'message'),
    [
        ('slurm', r'\(SLURM_PROCID is not set\); start it by tools/slurm_train.sh'),
        ('pytorch', r'\(RANK is not set\); start it by tools/dist_train.sh'),
        ('mpi', r'\(OMPI_COMM_WORLD_RANK is not set\); start it by mpirun'),
    ],
)
def test_processes_that_their_launcher_did_not_start(launcher, message):
    with pytest.raises(InputError, match=f'--launcher {launcher}: not started by it {message}'):
        join_ranks(launcher)
    assert on_first_rank(lambda: 'alone') == 'alone'
    on_each_machine(join_ranks, 'none')


def test_mpi_needs_the_address_of_the_first_rank(environment):
    environment.update({f'OMPI_COMM_WORLD_{name}': '0' for name in ('RANK', 'LOCAL_RANK')}, OMPI_COMM_WORLD_SIZE='1')
    with pytest.raises(InputError, match=r'--launcher mpi: MASTER_ADDR is not set: set it to .*, and MASTER_PORT to a'):
        join_ranks('mpi')
    environment['MASTER_ADDR'] = '127.0.0.1'
    join_ranks('mpi')
    assert (environment['RANK'], environment['WORLD_SIZE'], environment['MASTER_PORT']) == ('0', '1', '29500')


def test_a_port_in_use(environment, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(ranks, '_store', None)
    with socket.create_server(('::', 0), family=socket.AF_INET6, dualstack_ipv6=True) as taken:
        port = taken.getsockname()[1]
        for name, value in dict(RANK=0, WORLD_SIZE=1, LOCAL_RANK=0, MASTER_ADDR='127.0.0.1', MASTER_PORT=port).items():
            monkeypatch.setenv(name, str(value))
        with pytest.raises(InputError, match=rf'127.0.0.1:{port} is in use by another program: .* with PORT='):
            join_ranks('pytorch')


@pytest.fixture
def store(environment, monkeypatch):
    monkeypatch.setattr(ranks, '_store', distributed.HashStore())
    monkeypatch.setattr(ranks.time, 'sleep', lambda seconds: None)
    environment.update(WORLD_SIZE='2')
    return ranks._store


def as_rank(rank: int, call: int, monkeypatch) -> None:
    os.environ['RANK'] = str(rank)
    monkeypatch.setattr(ranks, '_calls', iter(range(call, 99)))


def test_all_ranks_get_what_the_first_one_returns(store, monkeypatch):
    as_rank(0, 0, monkeypatch)
    assert [on_first_rank(str.upper, name) for name in 'ab'] == ['A', 'B']
    as_rank(1, 0, monkeypatch)
    assert [on_first_rank(pytest.fail) for _ in 'ab'] == ['A', 'B']


@pytest.mark.parametrize(
    ('error', 'code'), [(InputError('bad'), 2), (OSError(28, 'full'), 2), (RuntimeError('bug'), 1)]
)
def test_an_error_in_the_first_rank_ends_the_others(error, code, store, monkeypatch, capsys):
    def fail():
        raise error

    as_rank(0, 0, monkeypatch)
    store.add('call 0: read', 1)  # else it waits for 10 seconds
    with pytest.raises(type(error), match=str(error.args[-1])):
        on_first_rank(fail)
    as_rank(1, 0, monkeypatch)
    with pytest.raises(SystemExit) as stop:
        on_first_rank(fail)
    assert stop.value.code == code
    assert capsys.readouterr().err == ''  # the first rank reports it
    assert store.add('call 0: read', 0) == 2
    assert json.loads(store.get('call 0')) == {'code': code}


def test_the_first_rank_waits_until_the_others_have_read_its_error(store, monkeypatch):
    def fail():
        raise InputError('bad')

    waits = []
    monkeypatch.setattr(
        ranks.time, 'sleep', lambda seconds: waits.append(seconds) or store.add('call 0: read', len(waits) == 3)
    )
    as_rank(0, 0, monkeypatch)
    with pytest.raises(InputError, match='bad'):
        on_first_rank(fail)
    assert store.add('call 0: read', 0) == 1


@pytest.mark.parametrize(
    ('local_ranks', 'failing', 'outcomes'),
    [
        ('0101', None, 'oooo'),
        ('0101', 2, '22e2'),  # data on the disks of one machine only
        ('0101', 0, 'e222'),
        ('0123', 0, 'e222'),
    ],
)
def test_the_first_rank_of_each_machine_checks_it(local_ranks, failing, outcomes, store, monkeypatch):
    def arrive(seconds: float) -> None:  # another rank
        for counter in ('done', 'read'):
            store.add(f'call 0: {counter}', 1)

    def check(rank: int) -> None:
        called.append(rank)
        if rank == failing:
            raise InputError('missing')

    def outcome(rank: int) -> str:
        as_rank(rank, 0, monkeypatch)
        os.environ.update(WORLD_SIZE='4', LOCAL_RANK=local_ranks[rank])
        try:
            on_each_machine(check, rank)
        except (InputError, SystemExit) as end:
            return 'e' if isinstance(end, InputError) else str(end.code)
        finally:
            assert store.add('call 0: done', 0) >= 4  # it has waited for the others
        return 'o'

    called = []
    monkeypatch.setattr(ranks.time, 'sleep', arrive)
    first = failing or 0
    found = {rank: outcome(rank) for rank in (first, *({0, 1, 2, 3} - {first}))}
    assert ''.join(found[rank] for rank in range(4)) == outcomes
    assert sorted(called) == [rank for rank in range(4) if local_ranks[rank] == '0']


def test_a_first_rank_that_exits_without_an_answer(store, monkeypatch, capsys):
    class Gone:
        def add(self, key, number):
            raise RuntimeError('Connection reset by peer')

    monkeypatch.setattr(ranks, '_store', Gone())
    as_rank(1, 0, monkeypatch)
    with pytest.raises(SystemExit) as stop:
        on_first_rank(pytest.fail)
    assert stop.value.code == 1
    assert capsys.readouterr().err == 'error: another rank exited; see its error above\n'
