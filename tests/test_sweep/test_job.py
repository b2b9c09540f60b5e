"""Jobs: the outcome of training, signals, and resuming."""

import json
import os
import signal
import sys
import threading
import time

import pytest

from pvt_mm.sweep.job import Job


def training(saves: float, code: int) -> list[str]:
    """Returns a command that takes ``saves`` seconds to write a checkpoint on SIGTERM and then exits with ``code``."""
    script = f"""
import signal, sys, time
from pathlib import Path
def stop(*_):
    time.sleep({saves})
    Path('saved').touch()
    sys.exit({code})
signal.signal(signal.SIGTERM, stop)
Path('ready').touch()
until = time.time() + 60
while time.time() < until:
    time.sleep(0.05)  # a long sleep delays signals that arrive just before it
"""
    return [sys.executable, '-c', script]


@pytest.mark.parametrize(
    ('script', 'outcome'),
    [
        ('print("trained")', dict(state='finished', code=0)),
        ('import sys; print("broke"); sys.exit(3)', dict(state='failed', code=3)),
        ('import os; os.kill(os.getpid(), 9)', dict(state='failed', code=-9)),  # out of memory
        ('import sys; sys.exit(130)', dict(state='running')),  # Ctrl-C
        ('import sys; sys.exit(75)', dict(state='running')),  # stopped after writing a checkpoint
        ('import os; os.kill(os.getpid(), 15)', dict(state='running')),
    ],
)
def test_outcome(script, outcome, tmp_path):
    Job([sys.executable, '-c', script], str(tmp_path), str(tmp_path))()
    written = json.loads((tmp_path / 'outcome.json').read_text())
    assert {key: written[key] for key in outcome} == outcome
    assert (tmp_path / 'train.log').read_text().startswith(f'$ {sys.executable} -c')


def test_the_tasks_of_several_nodes(tmp_path, monkeypatch):
    def run(task: int, script: str) -> None:
        for name, value in dict(SUBMITIT_EXECUTOR='slurm', SLURM_PROCID=str(task), SLURM_NTASKS='2').items():
            monkeypatch.setenv(name, value)
        Job([sys.executable, '-c', f'{script}; print("rank", {task})'], str(tmp_path), str(tmp_path))()

    run(1, 'pass')
    assert not (tmp_path / 'outcome.json').exists()  # the first task writes it
    run(0, 'pass')
    assert json.loads((tmp_path / 'outcome.json').read_text())['state'] == 'finished'
    assert (tmp_path / 'train.log').read_text().endswith('rank 0\n')
    assert (tmp_path / 'train_1.log').read_text().endswith('rank 1\n')
    with pytest.raises(SystemExit) as stop:  # on which Slurm ends the other tasks
        run(1, 'import sys; sys.exit(3)')
    assert stop.value.code == 1
    assert json.loads((tmp_path / 'outcome.json').read_text())['code'] == 3


def test_ctrl_c_waits_for_the_checkpoint(tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in background processes
    job = Job(training(saves=0.5, code=75), str(tmp_path), str(tmp_path))

    def interrupt():
        while not (tmp_path / 'ready').exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        job()
    signal.signal(signal.SIGINT, before)
    assert (tmp_path / 'saved').exists()
    assert json.loads((tmp_path / 'outcome.json').read_text())['state'] == 'running'


def test_training_that_ends_after_sigterm_has_finished(tmp_path):
    def stop():
        while not (tmp_path / 'ready').exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    Job(training(saves=0, code=0), str(tmp_path), str(tmp_path))()
    assert json.loads((tmp_path / 'outcome.json').read_text())['state'] == 'finished'


def test_resumes_if_there_is_a_checkpoint(tmp_path):
    job = Job(['true'], str(tmp_path), str(tmp_path))
    job()
    (tmp_path / 'last_checkpoint').write_text('epoch_1.pth')
    job()
    assert (tmp_path / 'train.log').read_text() == '$ true\n$ true --resume\n'
