"""A run that is stopped anywhere and resumed ends with the bits of one that was not, or says what is in its way."""

import json
import resource
import signal
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from pvt_mm.checkpoint import read_file
from pvt_mm.engine import run
from pvt_mm.engine.checkpoint_hook import STOPPED
from pvt_mm.errors import InputError
from tests.conftest import forget_visualizers
from tests.crash.crash import flat, same
from tests.crash.tasks import STEPS_OF_EPOCH, write_task
from tools import train as train_tool


@HOOKS.register_module()
class Interrupt(Hook):
    """Sends this process a signal in a step, or in an evaluation."""

    def __init__(self, step: int, signal: int = signal.SIGTERM, evaluating: bool = False):
        self.step, self.signal, self.evaluating = step, signal, evaluating

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.step and not self.evaluating:
            signal.raise_signal(self.signal)

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.step and self.evaluating:
            signal.raise_signal(self.signal)


@pytest.fixture(autouse=True)
def _leave_no_trace():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    torch.use_deterministic_algorithms(False)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def train(config: Path, folder: Path, *flags: str, interrupt: dict | None = None) -> int:
    forget_visualizers()
    if interrupt:
        changed = Config.fromfile(config)
        changed.custom_hooks = [*changed.get('custom_hooks', []), dict(type='Interrupt', **interrupt)]
        config = config.with_name(f'{config.stem}_interrupted.py')
        changed.dump(config)
    return train_tool.main([str(config), '--work-dir', str(folder), '--deterministic', *flags])


def state(folder: Path) -> dict:
    """Returns all that a run's last checkpoint has of its training."""
    content = read_file((folder / 'last_checkpoint').read_text())
    parts = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')
    return dict(flat({part: content.get(part) for part in parts}))


def assert_same_bits(a: Path, b: Path) -> None:
    ours, theirs = state(a), state(b)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not same(ours[name], theirs[name])] == []


@pytest.mark.parametrize(
    ('task', 'workers', 'step', 'accumulated'),
    [('retinanet', 2, 9, 1), ('semantic_fpn', 0, 4, 1), ('classifier', 2, 6, 1), ('classifier', 0, 4, 3)],
)
def test_a_run_stopped_at_any_step_ends_with_the_same_bits(task, workers, step, accumulated, shapes, tmp_path):
    more = f'optim_wrapper.update(accumulative_counts={accumulated})'
    config = write_task(task, tmp_path, shapes, epochs=2, workers=workers, more=more)
    assert train(config, tmp_path / 'whole') == 0
    with pytest.raises(SystemExit) as stop:
        train(config, tmp_path / 'part', interrupt=dict(step=step))
    assert stop.value.code == STOPPED == 75
    left = Path((tmp_path / 'part/last_checkpoint').read_text())
    step = -(-step // accumulated) * accumulated  # gradients that are being accumulated are waited for
    assert left.name == f'iter_{step}.pth'
    assert read_file(left)['meta']['iter'] == step
    # the data is loaded by other workers than before
    other = write_task(task, tmp_path, shapes, epochs=2, workers=2 - workers, more=more)
    assert train(other, tmp_path / 'part', '--resume') == 0
    assert_same_bits(tmp_path / 'whole', tmp_path / 'part')
    assert not left.exists()  # the next checkpoint has replaced it


def test_a_run_stopped_while_it_evaluates_evaluates_again(shapes, tmp_path):
    more = "default_hooks['checkpoint'].update(interval=3)"
    config = write_task('retinanet', tmp_path, shapes, epochs=3, more=more)
    assert train(config, tmp_path / 'whole') == 0
    with pytest.raises(SystemExit) as stop:
        train(config, tmp_path / 'part', interrupt=dict(step=12, evaluating=True, signal=signal.SIGINT))
    assert stop.value.code == STOPPED
    # with the trained weights, not the averaged ones that are evaluated
    assert (tmp_path / 'part/last_checkpoint').read_text().endswith('iter_12.pth')
    assert not list((tmp_path / 'part').glob('best*'))
    assert train(config, tmp_path / 'part', '--resume') == 0
    assert_same_bits(tmp_path / 'whole', tmp_path / 'part')
    metrics = [
        [json.loads(line)['coco/bbox_mAP'] for path in sorted(folder.glob('*/vis_data/scalars.json'))
         for line in path.read_text().splitlines() if 'bbox_mAP"' in line]
        for folder in (tmp_path / 'whole', tmp_path / 'part')
    ]  # fmt: skip
    assert metrics[0] == metrics[1]
    assert len(metrics[0]) == 2
    assert len(list((tmp_path / 'part').glob('best*'))) == 1


def test_without_a_seed_the_run_goes_on_with_the_one_it_had(shapes, tmp_path):
    config = write_task('classifier', tmp_path, shapes, epochs=2)
    config.write_text(config.read_text().replace('randomness = dict(seed=1)', ''))
    with pytest.raises(SystemExit):
        train(config, tmp_path / 'part', interrupt=dict(step=4))
    seed = read_file((tmp_path / 'part/last_checkpoint').read_text())['meta']['seed']
    assert train(config, tmp_path / 'part', '--resume') == 0
    assert train(config, tmp_path / 'whole', '--seed', str(seed)) == 0
    assert_same_bits(tmp_path / 'whole', tmp_path / 'part')


def test_a_damaged_checkpoint_gives_way_to_the_one_before(shapes, tmp_path, capsys):
    config = write_task('semantic_fpn', tmp_path, shapes, epochs=2)
    whole = tmp_path / 'whole'
    assert train(config, whole) == 0
    before = state(whole)
    assert [path.name for path in sorted(whole.glob('*.pth'))] == ['iter_12.pth', 'iter_6.pth']
    last = whole / 'iter_12.pth'
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    assert run.last_whole_checkpoint(str(whole)) == str(whole / 'iter_6.pth')
    assert train(config, whole, '--resume') == 0
    assert f'{last} is damaged' in capsys.readouterr().out
    after = state(whole)
    assert all(same(before[name], after[name]) for name in before)
    for path in whole.glob('*.pth'):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r'no checkpoint in .* is whole: .*iter_12.pth .*iter_6.pth '):
        run.last_whole_checkpoint(str(whole))


def test_a_folder_that_was_moved_is_resumed(shapes, tmp_path):
    (tmp_path / 'last_checkpoint').write_text('/elsewhere/epoch_3.pth')
    content = dict(meta={}, message_hub={}, optimizer={}, state_dict=dict(a=torch.ones(1)))
    torch.save(content, tmp_path / 'epoch_3.pth')
    assert run.last_whole_checkpoint(str(tmp_path)) == str(tmp_path / 'epoch_3.pth')


def test_a_checkpoint_that_cannot_be_written_stops_the_run_and_leaves_the_one_before(shapes, tmp_path, capsys):
    config = write_task('classifier', tmp_path, shapes, epochs=2)
    assert train(config, tmp_path / 'full', '--cfg-options', 'train_cfg.max_epochs=1') == 0
    first = (tmp_path / 'full/epoch_1.pth').read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(first) // 2, before[1]))
    try:
        assert train(config, tmp_path / 'full', '--resume') == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f'error: epoch_2.pth cannot be written to {tmp_path}/full (File too large), and training ')
    assert f'the last good checkpoint is {tmp_path}/full/epoch_1.pth' in error
    assert (tmp_path / 'full/epoch_1.pth').read_bytes() == first
    assert (tmp_path / 'full/last_checkpoint').read_text().endswith('epoch_1.pth')
    assert not list((tmp_path / 'full').glob('.*.tmp'))
    assert train(config, tmp_path / 'full', '--resume') == 0


def test_broken_images_are_counted_and_skipped_up_to_the_bound(tmp_path, capsys):
    from pvt_mm.datasets.shapes import make_shapes

    make_shapes(tmp_path / 'shapes', image_size=64, train=2 * STEPS_OF_EPOCH, val=2)
    paths = sorted((tmp_path / 'shapes/train2017').iterdir())[:2]
    for path in paths:
        path.write_bytes(path.read_bytes()[:300])
    config = write_task('retinanet', tmp_path, tmp_path / 'shapes', epochs=2, workers=1)
    assert train(config, tmp_path / 'run', '--cfg-options', 'train_cfg.max_broken_images=2') == 0
    log = next((tmp_path / 'run').glob('*/*.log')).read_text()
    for path in paths:
        assert log.count(f'of at most 2: {path} is damaged') == 1
    assert train(config, tmp_path / 'run2', '--cfg-options', 'train_cfg.max_broken_images=1') == 2
    assert 'more than 1 images cannot be read' in capsys.readouterr().err.splitlines()[-1]
