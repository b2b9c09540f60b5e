"""What a job does with its trial's training: its outcome, and when it resumes."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from pvt_mm.sweep.job import Job, train_command
from pvt_mm.sweep.spec import Trial


def training(saves: float, code: int) -> list[str]:
    """Returns the command of a training that takes ``saves`` seconds to save and ends with ``code`` when it is told."""
    script = f"""
import signal, sys, time
from pathlib import Path
def stop(*_):
    time.sleep({saves})
    Path('saved').touch()
    sys.exit({code})
signal.signal(signal.SIGTERM, stop)
Path('ready').touch()
time.sleep(60)
"""
    return [sys.executable, '-c', script]


@pytest.mark.parametrize(
    ('script', 'outcome'),
    [
        ('print("trained")', dict(state='finished', code=0)),
        ('import sys; print("broke"); sys.exit(3)', dict(state='failed', code=3)),
        ('import os; os.kill(os.getpid(), 9)', dict(state='failed', code=-9)),  # no memory
        ('import sys; sys.exit(130)', dict(state='running')),  # Ctrl-C: it was cut off
        ('import sys; sys.exit(75)', dict(state='running')),  # so was it, and wrote a checkpoint
        ('import os; os.kill(os.getpid(), 15)', dict(state='running')),
    ],
)
def test_the_end_is_written_down(script, outcome, tmp_path):
    Job([sys.executable, '-c', script], str(tmp_path), str(tmp_path))()
    written = json.loads((tmp_path / 'outcome.json').read_text())
    assert {key: written[key] for key in outcome} == outcome
    assert (tmp_path / 'train.log').read_text().startswith(f'$ {sys.executable} -c')


def test_ctrl_c_waits_for_the_checkpoint(tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
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


def test_training_that_ends_although_it_is_told_to_stop_has_finished(tmp_path):
    def stop():
        while not (tmp_path / 'ready').exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    Job(training(saves=0, code=0), str(tmp_path), str(tmp_path))()
    assert json.loads((tmp_path / 'outcome.json').read_text())['state'] == 'finished'


def test_it_resumes_from_a_checkpoint_that_is_there(tmp_path):
    job = Job(['true'], str(tmp_path), str(tmp_path))
    assert not job.can_resume()
    Path(tmp_path / 'last_checkpoint').write_text('epoch_1.pth')
    assert job.can_resume()


def test_several_gpus_train_under_torchrun():
    trial = Trial('a', 'a.py', ('x=1',), 3, None)
    one, four = (train_command(trial, Path('out'), Path('train.py'), gpus, ['--amp']) for gpus in (1, 4))
    rest, pytorch = ['train.py', 'a.py', '--work-dir', 'out', '--seed', '3'], ['--launcher', 'pytorch']
    assert one[1:] == ['-u', *rest, '--amp', '--cfg-options', 'x=1']
    assert four[1:] == [
        'launch.py',
        '--standalone',
        '--nproc_per_node=4',
        *rest,
        *pytorch,
        '--amp',
        '--cfg-options',
        'x=1',
    ]
