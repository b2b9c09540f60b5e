"""Training that stops before a step on a loss or gradients that are not finite, and keeps what shows why."""

import functools
import logging
import math
import os
import shlex
from collections.abc import Callable
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce, barrier, get_dist_info
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from pvt_mm.engine.loops import IterBasedTrainLoop
from pvt_mm.errors import InputError
from pvt_mm.files import whole_file
from pvt_mm.integrity import sign
from pvt_mm.registry import HOOKS


class NonFiniteError(InputError):
    """The loss or a gradient is not finite. Nothing was stepped."""


@HOOKS.register_module()
class FiniteHook(Hook):
    """Checks before every step, and before gradients are clipped, that the loss and all gradients are finite.

    Where they are not, training stops with a :class:`NonFiniteError`. Nothing is stepped, no checkpoint is written, and
    ``nonfinite_iter_N.pth`` in the work directory (``nonfinite_iter_N_rankR.pth`` of each process at fault, where there
    are several) holds what ``tools/replay.py`` needs to do the iteration again: weights and buffers as they were before
    it, the seed, and where its batch is in the data. Or up to ``max_skips`` steps in a row are left out, with a
    warning: weights, buffers and the optimizer's state stay, and the schedule goes on.

    A norm that overflows while every gradient is finite is no fault. Under a dynamic loss scale, gradients that
    overflow are for the scaler to skip, so that only the loss is checked. Processes decide alike.

    Args:
        max_skips: Steps in a row that may be left out before training stops.
    """

    def __init__(self, max_skips: int = 0):
        self.max_skips = max_skips
        self.skips_in_row = self.skips = 0
        self.batches: list[dict] = []  # that the gradients come from: several where they are accumulated

    def before_train(self, runner: Runner) -> None:
        """Puts itself between the backward pass and the step."""
        model, wrapper = _unwrapped(runner.model), runner.optim_wrapper
        self.parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.buffers = list(model.buffers())
        self.kept_buffers = [buffer.clone() for buffer in self.buffers]
        model.parse_losses = functools.partial(self._parse_losses, model.parse_losses)
        self.step = wrapper.step
        # MMEngine's schedulers have marked the method, and look for their mark.
        wrapper.step = functools.update_wrapper(functools.partial(self._step, runner), self.step)

    def after_train(self, runner: Runner) -> None:
        """Takes itself out again."""
        del _unwrapped(runner.model).parse_losses
        runner.optim_wrapper.step = self.step

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Notes which batch this is."""
        loop = runner.train_loop
        epoch, number = loop.position() if isinstance(loop, IterBasedTrainLoop) else (runner.epoch, batch_idx)
        position = dict(iter=runner.iter, epoch=epoch, number=number, rank=get_dist_info()[0])
        self.batches.append({**position, 'images': images_of(data_batch)})

    def _parse_losses(self, parse_losses: Callable, losses: dict) -> tuple[Tensor, dict[str, Tensor]]:
        loss, self.logged = parse_losses(losses)
        self.batches[-1]['losses'] = {name: torch.as_tensor(value).detach() for name, value in self.logged.items()}
        return loss, self.logged

    def _step(self, runner: Runner, **kwargs: Any) -> None:
        fault = None if self._all_finite(runner.optim_wrapper) else self._find_fault()
        if fault is None:
            self.step(**kwargs)
            self.skips_in_row = 0
            if self.buffers:
                torch._foreach_copy_(self.kept_buffers, self.buffers)
        else:
            if self.buffers:
                torch._foreach_copy_(self.buffers, self.kept_buffers)
            if self.skips_in_row == self.max_skips:
                raise NonFiniteError(f'{fault["text"]}. {self._save(runner, fault["ranks"])}')
            self.logged.clear()  # a mean with a NaN in it would hide what the other iterations of the log's window gave
            self.skips_in_row += 1
            self.skips += 1
            count = f'{self.skips_in_row} in a row of at most {self.max_skips}, {self.skips} in all'
            print_log(f'{fault["text"]}. The step is left out: {count}', logger='current', level=logging.WARNING)
        self.batches.clear()

    def _all_finite(self, wrapper: OptimWrapper) -> bool:
        """Returns True where all is finite, in every process, and False where it is not or a norm has overflowed."""
        finite = torch.stack([batch['losses']['loss'] for batch in self.batches]).isfinite().all()
        gradients = [value.grad for value in self.parameters.values() if value.grad is not None]
        if gradients and not _lowers_scale(wrapper):
            finite &= torch.stack(torch._foreach_norm(gradients)).isfinite().all()
        finite = finite.int()
        all_reduce(finite, 'min')
        return bool(finite)

    def _find_fault(self) -> dict | None:
        """Returns the ``text`` that says what is not finite and the ``ranks`` at fault, or None where all is finite."""
        for batch in self.batches:
            batch['losses'] = {name: value.item() for name, value in batch['losses'].items()}
        gradients = {name: value.grad for name, value in self.parameters.items() if value.grad is not None}
        bad = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
        everyones = all_gather_object((self.batches, bad))
        bad = max((names for _, names in everyones), key=len)
        batches = [batch for theirs, _ in everyones for batch in theirs]
        # Where every loss is finite and a gradient is not, it may come from any of the batches.
        guilty = [batch for batch in batches if not math.isfinite(batch['losses']['loss'])] or batches
        if not bad and math.isfinite(guilty[0]['losses']['loss']):
            return None
        loss, *parts = (f'{name} {value:.4g}' for name, value in _worst_losses(guilty[0]['losses']))
        text = f'iteration {guilty[0]["iter"] + 1}: {loss}' + (f' ({_few(parts)})' if parts else '')
        text += f', {len(bad)} of {len(gradients)} gradients are not finite'
        text += f', the first of {_few(bad)}' if bad else ''
        images = [
            image_name(image, batch['rank'] if len(everyones) > 1 else None)
            for batch in guilty
            for image in batch['images']
        ]
        return dict(text=f'{text}; images {_few(images)}', ranks=sorted({batch['rank'] for batch in guilty}))

    def _save(self, runner: Runner, ranks: list[int]) -> str:
        """Writes what a replay needs, in each process at fault, and returns where it is and how it is replayed."""
        rank, world_size = get_dist_info()
        suffixes = [f'_rank{one}' if world_size > 1 else '' for one in ranks]
        paths = [Path(runner.work_dir, f'nonfinite_iter_{runner.iter + 1}{suffix}.pth') for suffix in suffixes]
        failed = ''
        if rank in ranks:
            weights = {name: value.cpu() for name, value in _unwrapped(runner.model).state_dict().items()}
            scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
            content = dict(
                state_dict=weights,
                seed=runner.seed,
                rank=rank,
                world_size=world_size,
                loss_scale=scaler.get_scale() if scaler else 1.0,
                batches=self.batches,
            )
            try:
                with whole_file(paths[ranks.index(rank)]) as beside:
                    torch.save(content, beside)
                    sign(beside)
            except (OSError, RuntimeError) as error:  # torch has the latter for a full disk
                failed = f' ({paths[ranks.index(rank)]} could not be written: {error})'
        barrier()  # where one process ends, those that start them end the others
        config = Path(runner.work_dir, os.path.basename(runner.cfg.filename or f'{runner.timestamp}.py'))
        command = shlex.join(['tools/replay.py', str(config), str(paths[0])])
        saved = ', '.join(map(str, paths))
        return (
            f'Nothing was stepped, and no checkpoint changed; saved {saved}{failed}; such steps are left out with '
            f'--cfg-options default_hooks.finite.max_skips=N; see where this one begins: {command}'
        )


def images_of(data_batch: Any) -> list[dict]:
    """Returns the ``path`` and ``id``, as far as the pipeline packs them, of the images in a loader's batch."""
    samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
    images = []
    for sample in samples if isinstance(samples, (list, tuple)) else ():
        path, number = sample.get('img_path'), sample.get('img_id')
        number = int(number) if isinstance(number, Integral) else number and str(number)
        found = dict(path=path and str(path), id=number)
        images.append({name: value for name, value in found.items() if value is not None})
    return images


def image_name(image: dict, rank: int | None = None) -> str:
    """Returns how a message names an image of :func:`images_of`."""
    notes = [f'id {image["id"]}'] if 'id' in image else []
    notes += [f'rank {rank}'] if rank is not None else []
    return image.get('path', 'an image without a path') + (f' ({", ".join(notes)})' if notes else '')


def _worst_losses(losses: dict[str, float]) -> list[tuple[str, float]]:
    """Returns the whole loss, and its parts that are not finite."""
    parts = [(name, value) for name, value in losses.items() if 'loss' in name and not math.isfinite(value)]
    return [('loss', losses['loss']), *(part for part in parts if part[0] != 'loss')]


def _lowers_scale(wrapper: OptimWrapper) -> bool:
    """Returns whether a step whose gradients overflow is left out by a scaler, which then lowers its scale.

    One of 1 or less says that it is not the scale that they overflow by.
    """
    scaler = getattr(wrapper, 'loss_scaler', None)
    if scaler is None or not scaler.is_enabled() or wrapper._scale_update_param is not None:
        return False
    return scaler.get_scale() > 1


def _unwrapped(model: nn.Module) -> nn.Module:
    return model.module if is_model_wrapper(model) else model


def _few(names: list[str]) -> str:
    return ', '.join(names[:4]) + (f' and {len(names) - 4} more' if len(names) > 4 else '')
