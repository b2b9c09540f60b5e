"""The length of a training, its batch, and the learning rate that goes with it."""

import math
import os
from typing import Any

from mmengine.config import Config

from pvt_mm.apis.config import SPLITS, type_name
from pvt_mm.utils.errors import InputError
from pvt_mm.utils.text import plural

WARM_UP_SHARE = 0.1  # of the training, at most
MIN_WARM_UP = 2  # steps: MMEngine's LinearLR of one step would stay at its start


def use_batch(config: Config, batch: int) -> None:
    """Sets the images per process and step (``--batch``); an evaluation loads no more at a time.

    Raises:
        InputError: It is less than 1, or a batch sampler of the config sets it.
    """
    check_count('--batch', batch)
    if 'batch_size' not in config.train_dataloader:
        raise InputError('--batch: the config has no train_dataloader.batch_size; set it in its batch sampler')
    config.train_dataloader.batch_size = batch
    for split in SPLITS[1:]:
        loader = config.get(f'{split}_dataloader')
        if loader and loader.get('batch_size', 1) > batch:
            loader.batch_size = batch


def fit_batch(config: Config, images: int, processes: int) -> str | None:
    """Lowers a batch that is larger than the data, and returns what was done, if anything.

    Raises:
        InputError: There are fewer images than processes.
    """
    loader = config.train_dataloader
    batch = loader.get('batch_size')
    if images < processes:
        raise InputError(f'the training data has {images} images, fewer than the {processes} processes: use fewer')
    if not batch or batch * processes <= images:
        return None
    loader.batch_size = images // processes
    return f'the batch is {loader.batch_size} images and not {batch}, as there are {images} for training'


def fit_loading(config: Config, processes: int) -> None:
    """Lowers the data workers of each process to its share of the cores that this process may use, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    local = min(processes, int(os.environ.get('LOCAL_WORLD_SIZE', processes)))
    for split in SPLITS:
        loader = config.get(f'{split}_dataloader')
        if loader and loader.get('num_workers', 0) > 0:
            loader.num_workers = min(loader.num_workers, max(1, cores // local))


def without_workers(config: Config) -> None:
    """Removes what PyTorch refuses in data loaders without workers."""
    for split in SPLITS:
        loader = config.get(f'{split}_dataloader')
        if loader and not loader.get('num_workers', 0):
            loader.pop('prefetch_factor', None)
            if loader.get('persistent_workers'):
                loader.persistent_workers = False


def steps_of_epoch(config: Config, images: int, processes: int) -> int:
    """Returns the steps of a pass through the training data."""
    loader = config.train_dataloader
    of_rank, batch = math.ceil(images / processes), loader.get('batch_size', 1)
    steps = of_rank // batch if loader.get('drop_last') else math.ceil(of_rank / batch)
    return max(1, steps)


def use_epochs(config: Config, epochs: int, steps: int) -> None:
    """Sets the passes through the training data (``--epochs``), and stretches the schedule to them.

    A training by iterations gets that many of them. Milestones and ends of the schedule keep their place in it, a
    warm-up its length up to a tenth of it. Intervals of iterations are scaled alike; those of epochs stay.

    Args:
        config: The config, changed in place.
        epochs: At least 1.
        steps: The steps of a pass.

    Raises:
        InputError: ``epochs`` is less than 1.
    """
    check_count('--epochs', epochs)
    loop = config.train_cfg
    unit = _unit(loop)
    old, new = loop[unit], epochs if unit == 'max_epochs' else epochs * steps
    loop[unit] = new
    _fit_intervals(config, unit, old, new, steps)
    _fit_schedulers(config, unit, old, new, steps)


def fit_schedule(config: Config, steps: int) -> None:
    """Limits a warm-up to a tenth of the training, and the logger's interval to a quarter of a pass through the data.

    A training by iterations logs at least once a pass and four times in all.
    """
    loop = config.train_cfg
    unit = _unit(loop)
    _fit_schedulers(config, unit, loop[unit], loop[unit], steps)
    logger = (config.get('default_hooks') or {}).get('logger')
    if logger:
        most = steps // 4 if unit == 'max_epochs' else min(steps, loop[unit] // 4)
        logger.interval = max(1, min(logger.get('interval', 10), most))


def _unit(loop: dict) -> str:
    for unit in ('max_epochs', 'max_iters'):
        if loop.get(unit):
            return unit
    raise InputError('train_cfg has neither max_epochs nor max_iters: set one')


def _fit_intervals(config: Config, unit: str, old: int, new: int, steps: int) -> None:
    """Scales intervals in iterations, to a pass at least, and keeps those in epochs within the training."""
    loop, hooks = config.train_cfg, config.get('default_hooks') or {}

    def fit(part: dict, key: str) -> None:
        value = part.get(key)
        if isinstance(value, int) and value > 0:
            part[key] = min(value, new) if unit == 'max_epochs' else min(new, max(steps, round(value * new / old)))

    fit(loop, 'val_interval')
    fit(loop, 'val_begin')
    if hooks.get('checkpoint') and hooks['checkpoint'].get('by_epoch', True) == (unit == 'max_epochs'):
        fit(hooks['checkpoint'], 'interval')
    if loop.get('dynamic_intervals'):
        loop.dynamic_intervals = [(round(at * new / old), interval) for at, interval in loop.dynamic_intervals]
    for hook in config.get('custom_hooks') or ():
        for key in ('switch_epoch', 'num_last_epochs', 'begin_epoch', 'begin_iter'):
            if isinstance(hook.get(key), int) and hook[key] > 0 and (key == 'begin_iter') == (unit == 'max_iters'):
                hook[key] = max(1, round(hook[key] * new / old))


def _schedulers(config: Config) -> list[dict]:
    given = config.get('param_scheduler') or []
    parts = given.values() if isinstance(given, dict) and 'type' not in given else [given]
    return [scheduler for part in parts for scheduler in (part if isinstance(part, list) else [part])]


def _fit_schedulers(config: Config, unit: str, old: int, new: int, steps: int) -> None:
    schedulers, dropped = _schedulers(config), []
    units = [(flag, [one for one in schedulers if one.get('by_epoch', True) == flag]) for flag in (True, False)]
    for by_epoch, same in units:
        alike = by_epoch == (unit == 'max_epochs')
        total = new if alike else new * steps if not by_epoch else new / steps
        before = old if alike else None
        warm_ups = [scheduler for scheduler in same if _is_warm_up(scheduler, before)]
        place = _Stretch(before, total, max((scheduler['end'] for scheduler in warm_ups), default=0))
        if place.new_warm * (steps if by_epoch else 1) < MIN_WARM_UP:
            place.new_warm = 0
            dropped += map(id, warm_ups)
        for scheduler in same:
            _fit_scheduler(scheduler, place, steps if by_epoch else 1)
    if isinstance(config.get('param_scheduler'), list):
        config.param_scheduler = [scheduler for scheduler in schedulers if id(scheduler) not in dropped]


def _is_warm_up(scheduler: dict, total: float | None) -> bool:
    rises = type_name(scheduler).startswith(('Linear', 'Constant', 'Quadratic'))
    end = scheduler.get('end')
    return rises and scheduler.get('begin', 0) == 0 and isinstance(end, (int, float)) and end < (total or math.inf)


class _Stretch:
    """Where a point of an old schedule lies in a new one, in the same unit.

    ``before`` is the old length, None if it is not known in this unit: then only the warm-up changes.
    """

    def __init__(self, before: float | None, total: float, warm: float):
        self.before, self.total, self.warm = before, total, warm
        self.new_warm = min(warm, total * WARM_UP_SHARE)

    def __call__(self, point: float) -> float:
        if point <= self.warm:
            return point * self.new_warm / self.warm if self.warm else 0
        if self.before is None:
            return point
        rest = (self.total - self.new_warm) / ((self.before - self.warm) or 1)
        return self.new_warm + (point - self.warm) * rest


def _fit_scheduler(scheduler: dict, place: _Stretch, steps: int) -> None:
    whole = not scheduler.get('convert_to_iter_based')

    def rounded(value: float) -> float:
        return round(value) if whole or abs(value - round(value)) < 1e-6 else round(value, 6)

    begin, end = scheduler.get('begin', 0), scheduler.get('end')
    length = place.before if end is None else end - begin  # None: to the end
    for key in ('begin', 'end'):
        if isinstance(scheduler.get(key), (int, float)) and math.isfinite(scheduler[key]):
            scheduler[key] = rounded(place(scheduler[key]))
    new_end = place.total if scheduler.get('end') is None else scheduler['end']
    ratio = (new_end - scheduler.get('begin', 0)) / length if length else 1
    for key in ('T_max', 'total_steps', 'total_iters', 'step_size'):
        if scheduler.get(key):
            scheduler[key] = max(1, rounded(scheduler[key] * ratio)) if whole else rounded(scheduler[key] * ratio)
    if scheduler.get('periods'):
        scheduler.periods = [max(1, rounded(period * ratio)) for period in scheduler.periods]
    if 'milestones' in scheduler:
        _fit_milestones(scheduler, [place(one) for one in sorted({*scheduler['milestones']})], place, steps)


def _fit_milestones(scheduler: dict, points: list[float], place: _Stretch, steps: int) -> None:
    """Sets milestones to the points, rounded; in iterations if not all of them are epochs before the last one's end."""
    last = place.total if place.before is not None else math.inf
    scheduler['milestones'] = [round(point) for point in points]
    if [*scheduler['milestones'], last] == sorted({0, *scheduler['milestones'], last})[1:]:
        return
    for key in ('begin', 'end'):
        if isinstance(scheduler.get(key), (int, float)) and math.isfinite(scheduler[key]):
            scheduler[key] *= steps
    scheduler.pop('convert_to_iter_based', None)
    scheduler['by_epoch'] = False
    found, last = [], last * steps
    for left, point in zip(range(len(points), 0, -1), points, strict=True):
        found.append(max(min(round(point * steps), last - left), 1, *(one + 1 for one in found[-1:])))
    scheduler['milestones'] = [one for one in found if one < last]


def scale_lr_to_batch(config: Config, processes: int) -> str:
    """Scales the learning rate from the batch that it is for to that of this training, and returns what was done.

    Linearly for SGD (Goyal et al., 2017, arXiv 1706.02677), and by the square root for Adam and its kin (Malladi et
    al., 2022, arXiv 2205.10287). The batch is that of an update: images x processes x accumulated steps. The config
    then says that its rate is for this batch.
    """
    images = config.train_dataloader.get('batch_size')
    optimizer = config.optim_wrapper.get('optimizer') or {}
    scaling = config.get('auto_scale_lr') or {}
    base = scaling.get('base_batch_size')
    if not images or not base or 'lr' not in optimizer:
        missing = 'auto_scale_lr.base_batch_size' if not base else 'train_dataloader.batch_size or optimizer.lr'
        return f'the learning rate is not scaled to the batch, as the config has no {missing}'
    batch = images * processes * config.optim_wrapper.get('accumulative_counts', 1)
    config.auto_scale_lr = dict(scaling, base_batch_size=batch, enable=False)
    if batch == base:
        return f'the learning rate {optimizer["lr"]:.3g} is for a batch of {base}, as it is here'
    linear = type_name(optimizer) == 'SGD'
    factor = batch / base if linear else math.sqrt(batch / base)
    old, optimizer['lr'] = optimizer['lr'], float(f'{optimizer["lr"] * factor:.4g}')
    for scheduler in _schedulers(config):
        if scheduler.get('eta_min') and 'Momentum' not in type_name(scheduler):
            scheduler['eta_min'] *= factor
    how = 'the ratio' if linear else 'the square root of the ratio, as for all but SGD'
    return (
        f'the learning rate is {optimizer["lr"]:.3g}: {old:.3g}, which is for a batch of {base}, times {factor:.3g} '
        f'for the batch of {batch} here ({how}); '
        '--no-scale-lr keeps it, --cfg-options optim_wrapper.optimizer.lr=RATE sets it'
    )


def describe_length(config: Config, images: int, steps: int) -> str:
    """Returns how long the training is, in a line."""
    loop = config.train_cfg
    unit = _unit(loop)
    epochs = loop[unit] if unit == 'max_epochs' else loop[unit] / steps
    total = loop[unit] * steps if unit == 'max_epochs' else loop[unit]
    passes = f'{epochs:.3g} epoch{"s" * (epochs != 1)} of {plural(steps, "step")}'
    return f'{plural(images, "training image")}, {plural(total, "step")}: {passes} (--epochs N changes it)'


def check_count(flag: str, value: Any) -> None:
    """Raises an InputError if the value of a flag is given and is not an integer from 1."""
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f'{flag} {value}: it must be a whole number from 1')
