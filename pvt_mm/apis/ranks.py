"""The ranks of a run: finding each other, and work that the first one does for all."""

import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from torch import distributed

from pvt_mm.utils.errors import InputError, is_port_in_use

# Each launcher's variables for a process's rank, the number of ranks, and its rank on its machine.
VARIABLES = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
}
STARTED_BY = {'pytorch': 'tools/dist_train.sh', 'slurm': 'tools/slurm_train.sh', 'mpi': 'mpirun'}

_store: distributed.Store | None = None  # of a run with several ranks
_calls = itertools.count()  # all ranks make the same calls in the same order


def join_ranks(launcher: str) -> None:
    """Sets torchrun's variables from those of the launcher, and connects the ranks for :func:`on_first_rank`.

    A Slurm job gets a port of its own, as jobs may share a machine and MMEngine would take 29500 for all.

    Raises:
        InputError: The process was not started by that launcher, the address of the first rank is unknown, or its port
            is in use.
    """
    global _store
    if launcher == 'none':
        return
    try:
        os.environ.update(zip(VARIABLES['pytorch'], (os.environ[name] for name in VARIABLES[launcher]), strict=True))
        if launcher == 'slurm':
            _set_address_from_slurm()
    except (KeyError, OSError, subprocess.CalledProcessError) as error:
        why = f'{error.args[0]} is not set' if isinstance(error, KeyError) else str(error)
        raise InputError(
            f'--launcher {launcher}: not started by it ({why}); start it by {STARTED_BY[launcher]}'
        ) from error
    if 'MASTER_ADDR' not in os.environ:
        raise InputError(
            f'--launcher {launcher}: MASTER_ADDR is not set: set it to the address of the machine of the first rank, '
            'and MASTER_PORT to a free port there (default: 29500)'
        )
    os.environ.setdefault('MASTER_PORT', '29500')
    where = f'{os.environ["MASTER_ADDR"]}:{os.environ["MASTER_PORT"]}'
    try:
        store, *_ = next(distributed.rendezvous('env://'))
    except RuntimeError as error:
        if not is_port_in_use(error):
            raise
        raise InputError(f'{where} is in use by another program: set another port with PORT=') from error
    _store = distributed.PrefixStore('pvt_mm', store)


def _set_address_from_slurm() -> None:
    command = ['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']]
    nodes = subprocess.run(command, capture_output=True, text=True, check=True)
    os.environ.setdefault('MASTER_ADDR', nodes.stdout.split()[0])
    step = int(os.environ.get('SLURM_STEP_ID', 0))  # a job may run several at a time
    os.environ.setdefault('MASTER_PORT', str(20000 + (int(os.environ['SLURM_JOB_ID']) + 997 * step) % 10000))


def on_first_rank(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function on the first rank, and returns what it returns (values of JSON) on all. All ranks must call it.

    The others wait without a collective operation, of which the process group ends those that take minutes.

    Raises:
        SystemExit: On the other ranks, where the function raises on the first one, which reports it: with 2 for an
            InputError or an OSError. Or where the first one exited.
    """
    if _store is None:
        return function(*args)
    key = f'call {next(_calls)}'
    if os.environ['RANK'] != '0':
        return _outcome_of_first_rank(_store, key)
    outcome: dict[str, Any] = {'code': 1}
    try:
        outcome = {'value': function(*args)}
        return outcome['value']
    except (InputError, OSError):
        outcome = {'code': 2}
        raise
    finally:
        _store.set(key, json.dumps(outcome))
        _store.add(f'{key}: known', 1)
        if 'code' in outcome:  # the store may end with this process
            _wait_for(_store, f'{key}: read', int(os.environ['WORLD_SIZE']) - 1, seconds=10)


def _outcome_of_first_rank(store: distributed.Store, key: str) -> Any:
    try:
        _wait_for(store, f'{key}: known', 1)
        outcome = json.loads(store.get(key))
        if 'code' in outcome:
            store.add(f'{key}: read', 1)
    except RuntimeError:  # the store was in the first rank
        exit_after_another_rank()
    if 'code' in outcome:
        _exit_later(outcome['code'])
    return outcome['value']


def on_each_machine(function: Callable[..., None], *args: Any) -> None:
    """Calls a function on the first rank of each machine; where it raises an InputError or OSError, all ranks exit.

    All ranks must call it.
    """
    if _store is None:
        function(*args)
        return
    key, ranks = f'call {next(_calls)}', int(os.environ['WORLD_SIZE'])
    error = None
    try:
        if os.environ['LOCAL_RANK'] == '0':
            function(*args)
    except (InputError, OSError) as failure:
        error = failure
        _store.add(f'{key}: failed', 1)
    _store.add(f'{key}: done', 1)
    _wait_for(_store, f'{key}: done', ranks)
    failed = _store.add(f'{key}: failed', 0)
    _store.add(f'{key}: read', 1)
    if failed and os.environ['RANK'] == '0':  # the store may end with this process
        _wait_for(_store, f'{key}: read', ranks, seconds=10)
    if error:
        raise error
    if failed:
        _exit_later(2)


def exit_after_another_rank() -> NoReturn:
    """Exits with 1 and one line, as another rank has exited or will, which reports why."""
    sys.stderr.write('error: another rank exited; see its error above\n')
    _exit_later(1)


def _exit_later(code: int) -> NoReturn:
    time.sleep(5)  # torchrun reports the rank that it sees exit first, and the other may take seconds to end
    raise SystemExit(code)


def _wait_for(store: distributed.Store, counter: str, count: int, seconds: float = math.inf) -> None:
    """Waits for a counter, at most so long. Signals are handled, as they are not in ``Store.wait``."""
    until, pause = time.monotonic() + seconds, 0.01
    while store.add(counter, 0) < count and time.monotonic() < until:
        time.sleep(pause)
        pause = min(2 * pause, 0.5)
