"""How a training begins: what it is about to do, how long that may take, and weights with a head of other classes."""

import datetime
import time
from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook, LoggerHook
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop, Runner

from pvt_mm.utils.text import plural, shorten


class StartHook(Hook):
    """Logs a summary right before the first step, and the duration of that step.

    Args:
        notes: Lines of the summary, before the one about the length of the training.
    """

    priority = 'LOWEST'  # after the lines of the others

    def __init__(self, notes: Sequence[str] = ()):
        self.notes = notes

    def before_train(self, runner: Runner) -> None:
        """Logs the summary."""
        for note in self.notes:
            runner.logger.info(note)
        loop, done = runner.train_loop, runner.iter
        length = plural(loop.max_iters, 'step')
        steps = len(loop.dataloader) if isinstance(loop, EpochBasedTrainLoop) else loop.max_iters
        if isinstance(loop, EpochBasedTrainLoop):
            length = f'{plural(loop.max_epochs, "epoch")} of {plural(steps, "step")}'
        interval = next((hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)), None)
        every = min(interval or 0, steps)
        logged = f', with a line in the log every {f"{every} steps" if every > 1 else "step"}' if every else ''
        runner.logger.info(f'training: {length}{f", from step {done + 1}" if done else ""}{logged}')
        self.first, self.start = done, time.monotonic()

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Logs how long the first step of this process took."""
        if runner.iter != self.first:
            return
        seconds, more = time.monotonic() - self.start, runner.max_iters - self.first - 1
        rest = str(datetime.timedelta(seconds=round(seconds * more)))
        estimate = f'; {plural(more, "more step")} of that duration would take {rest}' if more else ''
        runner.logger.info(f'the first step, which is often the slowest, took {seconds:.2f} s{estimate}')


class OtherHeadHook(Hook):
    """Keeps what a new run cannot take from weights, such as a head for other classes, as it is initialized.

    MMEngine does too, and logs a warning for each parameter. Backbones are left to it: they may be of another format.
    """

    priority = 'VERY_HIGH'  # EMAHook loads them next

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Replaces parameters of another shape in the checkpoint by those of the model."""
        if runner._resume:
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        own, weights = model.state_dict(), checkpoint.get('state_dict', checkpoint)
        kept = []
        for key, value in weights.items():
            name = key.removeprefix('module.')
            if name in own and 'backbone' not in name.split('.') and value.shape != own[name].shape:
                weights[key] = own[name]
                kept.append(f'{name} ({tuple(own[name].shape)}, there {tuple(value.shape)})')
        if kept:
            runner.logger.info(f'not loaded, as the shape is another, but initialized: {shorten(kept, 4)}')
