"""Planted trouble in a training, and the comparison of two trainings bit for bit."""

import os
import signal
from pathlib import Path

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from pvt_mm.checkpoint.reader import read_file
from tests.crash.crash import flat, same


@HOOKS.register_module()
class Trouble(Hook):
    """A signal, an exception or a full disk in one rank or in all, before a step or at the start of an evaluation."""

    priority = 'LOWEST'

    def __init__(self, what: str, step: int, rank: int | None = None, evaluating: bool = False):
        self.what, self.step, self.rank, self.evaluating = what, step, rank, evaluating

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.step and not self.evaluating:
            self.make(runner)

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.step and batch_idx == 0 and self.evaluating:
            self.make(runner)

    def make(self, runner):
        if self.rank not in (None, runner.rank):
            return
        if self.what == 'full disk':
            Path.write_bytes = no_space
        else:
            os.kill(os.getpid(), signal.Signals[self.what])


def no_space(path: Path, content: bytes) -> None:
    raise OSError(28, 'No space left on device')


def write_troubled(config: Path, **trouble) -> Path:
    hooks = [*map(dict, Config.fromfile(config).get('custom_hooks', [])), dict(type='Trouble', **trouble)]
    path = config.with_name(f'{config.stem}_troubled.py')
    path.write_text(f"_base_ = '{config.name}'\ncustom_hooks = {hooks}\n")
    return path


def last(folder: Path) -> dict:
    return read_file((folder / 'last_checkpoint').read_text())


def assert_same_bits(a: Path, b: Path) -> None:
    """All that the last checkpoints of two runs have of their training is equal."""
    assert_same_training(last(a), last(b))


def assert_same_training(a: dict, b: dict) -> None:
    """All that two checkpoints have of their training is equal."""
    parts = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')
    ours, theirs = (dict(flat({part: content.get(part) for part in parts})) for content in (a, b))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not same(ours[name], theirs[name])] == []
