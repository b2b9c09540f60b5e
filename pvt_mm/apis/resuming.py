"""What a resumed run keeps from its checkpoint, and what it takes from a config that has changed."""

import ast
import logging
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmengine.utils import digit_version

from pvt_mm.apis.config import settings_of
from pvt_mm.checkpoint.reader import read_file
from pvt_mm.utils.errors import InputError
from pvt_mm.utils.text import shorten

# Settings that a checkpoint overrides, as MMEngine loads the states of the optimizer and its schedules.
KEPT = ('optim_wrapper.optimizer', 'optim_wrapper.paramwise_cfg', 'param_scheduler', 'randomness.seed')
# Settings that say where and how a run is started, not how it trains.
INCIDENTAL = {'load_from', 'resume', 'work_dir', 'launcher', 'experiment_name', 'visualizer', 'log_level'}
NEW_SCHEDULE = 'pvt_mm.NewScheduleHook'
LIMIT = 8  # settings to list


def report_changes(config: Config, checkpoint: str) -> None:
    """Logs which changed settings of a config a resumed run ignores and which it takes, and what makes it take them.

    The config in the checkpoint is read as text; nothing in it is run.

    Raises:
        InputError: The optimizer of the config is another than the checkpoint's, or is fused where it cannot be.
    """
    content = read_file(checkpoint)
    meta = content.get('meta') or {}
    before, now = read_settings(meta.get('cfg') or ''), read_settings(config.pretty_text)
    instead = f'to start a new run from its weights, use --cfg-options load_from={checkpoint} without --resume'
    _check_optimizer(content, before, now, instead)
    takes_schedule = any(_type_of(hook) == NEW_SCHEDULE for hook in config.get('custom_hooks') or ())
    changes = list(_changes(before, now)) if before else []
    kept = [change for change in changes if change[0].startswith(KEPT)]
    taken = [f'{name} {_short(new)} (before: {_short(old)})' for name, old, new in changes if not name.startswith(KEPT)]
    where = f'resuming after epoch {meta.get("epoch")}, step {meta.get("iter")}'
    if kept and not takes_schedule:
        ignored = [f'{name} {_short(old)} (not {_short(new)})' for name, old, new in kept]
        _log(
            f'{where}: what has changed in the config here is ignored, as the checkpoint has it: '
            f'{shorten(ignored, LIMIT)}. To take the settings of the optimizer, its learning rate included, and the '
            f'schedule from the config, add --new-schedule; {instead}',
            logging.WARNING,
        )
    if takes_schedule:
        _log(f'{where}, with the settings of the optimizer and the schedule of the config')
    if taken:
        _log(f'{where}: taken from the config: {shorten(taken, LIMIT)}')
    if not takes_schedule and (rest := _constant_rate(content, now)):
        _log(f'{where}: {rest}; --new-schedule takes the schedule of the config', logging.WARNING)


def read_settings(text: str) -> dict[str, Any]:
    """Returns the settings in the text of a config by their dotted names, without running it.

    Values that are not plain are the text of their expression.
    """
    try:
        assignments = [node for node in ast.parse(text).body if isinstance(node, ast.Assign)]
    except (SyntaxError, ValueError, RecursionError):
        return {}
    named = {node.targets[0].id: _value(node.value) for node in assignments if isinstance(node.targets[0], ast.Name)}
    return dict(_flatten(named, '')) if named else {}


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict' and not node.args:
        return {keyword.arg: _value(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict) and all(isinstance(key, ast.Constant) for key in node.keys):
        return {key.value: _value(value) for key, value in zip(node.keys, node.values, strict=True)}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(inner) for inner in node.elts]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError):
        return ast.unparse(node)


def _flatten(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Yields each setting; lists of dicts, such as schedules and hooks, are entered as MMEngine's names do."""
    if isinstance(value, list) and value and all(isinstance(inner, dict) for inner in value):
        value = dict(enumerate(value))
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flatten(inner, f'{where}.{name}' if where else str(name))
    else:
        yield where, value


def _changes(before: dict, now: dict) -> Iterator[tuple[str, Any, Any]]:
    """Yields the name of each setting of MMEngine's runner that differs, and both values."""
    read = settings_of(Runner) - INCIDENTAL
    for name in [*now, *(name for name in before if name not in now)]:
        values = before.get(name), now.get(name)
        if name.split('.')[0] in read and values[0] != values[1] and NEW_SCHEDULE not in values:
            yield name, *values


def _check_optimizer(content: dict, before: dict, now: dict, instead: str) -> None:
    """Raises an InputError if the optimizer's state in a checkpoint cannot continue."""
    old, new = (settings.get('optim_wrapper.optimizer.type') for settings in (before, now))
    if old and new and old != new:
        raise InputError(f'--resume: the checkpoint has the state of {old}, and the optimizer is {new}: {instead}')
    groups = (content.get('optimizer') or {}).get('param_groups') or ()
    on_gpu_only = not torch.cuda.is_available() and digit_version(torch.__version__) < digit_version('2.4')
    if on_gpu_only and any(group.get('fused') for group in groups if isinstance(group, dict)):
        raise InputError(
            f'--resume: the optimizer of the checkpoint is fused, which PyTorch {torch.__version__} has on GPUs only: '
            f'set optim_wrapper.optimizer.fused=False and add --new-schedule; {instead}'
        )


def _constant_rate(content: dict, now: dict) -> str:
    """Returns a line if no schedule of the checkpoint changes the learning rate of the remaining steps, or ''."""
    meta, states = content['meta'], content.get('param_schedulers')
    done = {True: meta.get('epoch', 0), False: meta.get('iter', 0)}
    by_epoch, end = True, now.get('train_cfg.max_epochs')
    if end is None:
        by_epoch, end = False, now.get('train_cfg.max_iters')
    groups = (content.get('optimizer') or {}).get('param_groups') or ()
    if not isinstance(states, list) or not states or not groups or not isinstance(end, int) or end <= done[by_epoch]:
        return ''
    if any(_may_change(state, done[state.get('by_epoch', True)]) for state in states):
        return ''
    rates = sorted({float(f'{float(group["lr"]):.3g}') for group in groups})
    rate = f'{rates[-1]:g}' if len(rates) == 1 else f'{rates[0]:g} to {rates[-1]:g}'
    what = 'epochs' if by_epoch else 'steps'
    return (
        f'the schedule in the checkpoint has ended, and the learning rate stays {rate} for the {what} '
        f'{done[by_epoch] + 1} to {end}'
    )


def _may_change(state: dict, done: int) -> bool:
    """Returns whether a schedule changes its value after so many epochs or steps."""
    ends = [state.get('end', done)]
    if milestones := state.get('milestones'):
        ends.append(max(milestones) + state.get('begin', 0) + 1)
    if isinstance(state.get('total_iters'), int):
        ends.append(state.get('begin', 0) + state['total_iters'] + 1)
    return min(ends) > done + 1


def _type_of(hook: Any) -> str:
    return str(hook.get('type')) if isinstance(hook, dict) else ''


def _short(value: Any) -> str:
    return 'not set' if value is None else f'{value!r:.60}'


def _log(text: str, level: int = logging.INFO) -> None:
    print_log(text, logger='current', level=level)
