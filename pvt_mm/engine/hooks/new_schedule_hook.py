"""A resumed run with another learning rate or schedule than its checkpoint's."""

import warnings
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from pvt_mm.registry import HOOKS


@HOOKS.register_module()
class NewScheduleHook(Hook):
    """Makes a resumed run take the settings of the optimizer and the schedules from its config.

    MMEngine takes them from the checkpoint. With this hook the run continues at the checkpoint's epoch and step with
    the learning rate, weight decay, ... that the config's schedules have there, as if the run had begun with them. The
    optimizer keeps its momentum. ``tools/train.py --resume --new-schedule`` adds it.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Replaces the states of the schedules and the settings of the optimizer in the checkpoint of a resumed run."""
        if not runner._resume or 'optimizer' not in checkpoint:
            return
        schedulers, wrapper = runner.param_schedulers, runner.optim_wrapper
        if isinstance(schedulers, dict) or 'param_groups' not in checkpoint['optimizer']:  # several optimizers by name
            parts = [(wrapper[name], (schedulers or {}).get(name), checkpoint['optimizer'][name]) for name in wrapper]
        else:
            parts = [(wrapper, schedulers, checkpoint['optimizer'])]
        for optimizer, schedules, saved in parts:
            advance(schedules or [], checkpoint)
            for group, old in zip(optimizer.param_groups, saved['param_groups'], strict=False):
                old.update({name: value for name, value in group.items() if name != 'params'})
        checkpoint.pop('param_schedulers', None)


def advance(schedulers: list, checkpoint: dict) -> None:
    """Steps new schedules to the epoch and step of a checkpoint, in the order of training."""
    epochs, steps = checkpoint['meta']['epoch'], checkpoint['meta']['iter']
    info: dict[str, Any] = checkpoint.get('message_hub', {}).get('runtime_info', {})
    began = info.get('epoch_began') or (None, steps)  # epoch and step at which the last epoch began
    whole = began[1] if began[0] == epochs else steps  # steps of the finished epochs
    by_step = [one for one in schedulers if not one.by_epoch]
    by_epoch = [one for one in schedulers if one.by_epoch]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # no step of the optimizer comes before
        done = 0
        for epoch in range(epochs):
            until = whole * (epoch + 1) // epochs
            _step(by_step, until - done)
            _step(by_epoch, 1)
            done = until
        _step(by_step, steps - done)


def _step(schedulers: list, times: int) -> None:
    for _ in range(times):
        for scheduler in schedulers:
            scheduler.step()
