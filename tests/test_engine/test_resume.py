"""A run that is stopped anywhere and resumed ends with the same bits as an uninterrupted one, or says why not."""

import json
import multiprocessing
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from pvt_mm.apis.flags import find_resumable_checkpoint
from pvt_mm.checkpoint.reader import read_file
from pvt_mm.datasets.shapes import make_shapes
from pvt_mm.engine.hooks.checkpoint_hook import STOPPED, StopSignal
from pvt_mm.utils.errors import InputError
from tests.conftest import forget_runs
from tests.crash.tasks import STEPS_OF_EPOCH, write_task
from tests.test_engine.trouble import assert_same_bits, last, write_troubled
from tools import train as train_tool


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setattr(Config, 'pretty_text', '')  # formatting it takes half of the time of so short a run
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)}
    yield
    torch.use_deterministic_algorithms(False)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def train(config: Path, folder: Path, *flags: str) -> int:
    forget_runs()
    others = set(multiprocessing.active_children())
    try:
        return train_tool.main([str(config), '--work-dir', str(folder), '--deterministic', *flags])
    finally:
        assert set(multiprocessing.active_children()) <= others  # data workers end with the run


def train_until(config: Path, folder: Path, *flags: str, **trouble) -> Path:
    """Trains until a signal comes, and returns the checkpoint that is left."""
    with pytest.raises(SystemExit) as stop:
        train(write_troubled(config, **trouble), folder, *flags)
    assert stop.value.code == STOPPED == 75
    path = Path((folder / 'last_checkpoint').read_text())
    assert read_file(path)['meta']['iter'] == int(path.stem.removeprefix('iter_'))
    return path


def test_a_detector_stopped_in_an_epoch_and_in_an_evaluation(shapes, tmp_path):
    """With averaged weights, batches by aspect ratio, and other data workers after each stop."""
    whole, part = tmp_path / 'whole', tmp_path / 'part'
    more = "default_hooks['checkpoint'].update(interval=3)"
    config, other = (write_task('retinanet', tmp_path, shapes, epochs=3, workers=n, more=more) for n in (2, 0))
    assert train(config, whole) == 0

    first = train_until(config, part, what='SIGTERM', step=8)
    assert first.name == 'iter_8.pth'
    # with the trained weights, not the averaged ones, which are evaluated
    second = train_until(other, part, '--resume', what='SIGINT', step=12, evaluating=True)
    assert second.name == 'iter_12.pth'
    assert not first.exists()  # the next checkpoint has replaced it
    assert not list(part.glob('best*'))
    assert train(config, part, '--resume') == 0
    assert not second.exists()
    assert len(list(part.glob('best*'))) == 1
    assert_same_bits(whole, part)
    metrics = [
        [json.loads(line)['coco/bbox_mAP'] for path in sorted(folder.glob('*/vis_data/scalars.json'))
         for line in path.read_text().splitlines() if 'bbox_mAP"' in line]
        for folder in (whole, part)
    ]  # fmt: skip
    assert metrics[0] == metrics[1]
    assert len(metrics[0]) == 2


def test_a_segmentor_stopped_and_its_last_checkpoint_damaged(shapes, tmp_path, capsys):
    """Training by iterations. A damaged checkpoint is replaced by the one before it."""
    whole, part = tmp_path / 'whole', tmp_path / 'part'
    config = write_task('semantic_fpn', tmp_path, shapes, epochs=2)
    assert train(config, whole) == 0
    assert train_until(config, part, what='SIGUSR2', step=4).name == 'iter_4.pth'
    assert train(config, part, '--resume') == 0
    assert_same_bits(whole, part)

    assert [path.name for path in sorted(part.glob('*.pth'))] == ['iter_12.pth', 'iter_6.pth']
    newest = part / 'iter_12.pth'
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert find_resumable_checkpoint(str(part)) == str(part / 'iter_6.pth')
    left = part / 'iter_4.pth', part / '.iter_12.pth.1.tmp'  # as by a run that is killed while it saves
    for path in left:
        path.touch()
    assert train(config, part, '--resume') == 0
    assert not any(path.exists() for path in left)
    assert f'{newest} is damaged' in capsys.readouterr().out
    assert_same_bits(whole, part)
    for path in part.glob('*.pth'):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r'--resume: all checkpoints in .*iter_12.pth .*iter_6.pth '):
        find_resumable_checkpoint(str(part))


def test_a_classifier_stopped_at_the_end_of_an_epoch(shapes, tmp_path):
    """With accumulated gradients, which are waited for, and without a seed, so that the resumed run takes it over."""
    whole, part = tmp_path / 'whole', tmp_path / 'part'
    more = 'optim_wrapper.update(accumulative_counts=3)'
    config = write_task('classifier', tmp_path, shapes, epochs=2, workers=1, more=more)
    config.write_text(config.read_text().replace('randomness = dict(seed=1)', ''))
    assert train_until(config, part, what='SIGTERM', step=4).name == f'iter_{STEPS_OF_EPOCH}.pth'
    seed = last(part)['meta']['seed']
    assert train(config, part, '--resume') == 0
    assert train(config, whole, '--seed', str(seed)) == 0
    assert_same_bits(whole, part)


def test_a_moved_work_directory_is_resumed(tmp_path):
    (tmp_path / 'last_checkpoint').write_text('/elsewhere/epoch_3.pth')
    content = dict(meta={}, message_hub={}, optimizer={}, state_dict=dict(a=torch.ones(1)))
    torch.save(content, tmp_path / 'epoch_3.pth')
    assert find_resumable_checkpoint(str(tmp_path)) == str(tmp_path / 'epoch_3.pth')


def test_unreadable_images_and_a_full_disk_stop_a_run_that_can_be_resumed(tmp_path, capsys):
    make_shapes(tmp_path / 'shapes', image_size=64, train=2 * STEPS_OF_EPOCH, val=3)
    bad = sorted((tmp_path / 'shapes/classification/train').glob('*/*'))[:2]
    for path in bad:
        path.write_bytes(path.read_bytes()[:300])
    folder = tmp_path / 'run'
    config = write_task('classifier', tmp_path, tmp_path / 'shapes', epochs=2, workers=1)
    keep_one = 'default_hooks.checkpoint.max_keep_ckpts=1'
    allow_one, allow_two = (['--cfg-options', keep_one, f'train_cfg.max_broken_images={bound}'] for bound in (1, 2))
    assert train(config, tmp_path / 'none', *allow_one) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith('error: more than 1 images cannot be read, the last: ')
    assert train(config, folder, *allow_two, 'train_cfg.max_epochs=1') == 0
    log = next(folder.glob('*/*.log')).read_text()
    assert [log.count(f'of at most 2: {path} is truncated') for path in bad] == [1, 1]

    first = (folder / 'epoch_1.pth').read_bytes()
    assert first[-104:].startswith(b'pvt_mm size=')  # signed
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(first) // 2, before[1]))
    try:
        assert train(config, folder, '--resume', *allow_two) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f'error: epoch_2.pth cannot be written to {folder} (File too large), and training stops; ')
    assert f'the last good checkpoint is {folder}/epoch_1.pth' in error
    assert [path.name for path in folder.glob('epoch_*.pth')] == ['epoch_1.pth']
    assert (folder / 'epoch_1.pth').read_bytes() == first
    assert (folder / 'last_checkpoint').read_text().endswith('epoch_1.pth')
    assert not list(folder.glob('.*.tmp'))
    assert train(config, folder, '--resume', *allow_two) == 0
    assert [path.name for path in folder.glob('epoch_*.pth')] == ['epoch_2.pth']


def test_a_second_ctrl_c_ends_the_run_at_once(monkeypatch, capfd):
    before, now = signal.getsignal(signal.SIGINT), 0.0
    monkeypatch.setattr(time, 'monotonic', lambda: now)
    stop = StopSignal()
    signal.raise_signal(signal.SIGINT)
    now = 0.5  # the same one, passed on by a launcher
    signal.raise_signal(signal.SIGINT)
    assert stop.received()
    assert capfd.readouterr().err == 'SIGINT: stopping after this step; a second Ctrl-C aborts without a checkpoint\n'
    now = 2.0
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before
