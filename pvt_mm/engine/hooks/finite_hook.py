"""Steps with NaN/Inf in the loss or gradients are skipped or stop the training, and are saved for a replay."""

import functools
import math
import shlex
from collections.abc import Callable, Iterable
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object, barrier, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from pvt_mm.checkpoint.writer import save
from pvt_mm.engine.hooks.checkpoint_hook import CheckpointHook, any_rank
from pvt_mm.engine.loops import ExactLoop
from pvt_mm.registry import HOOKS
from pvt_mm.utils.errors import InputError
from pvt_mm.utils.text import shorten


class NonFiniteError(InputError):
    """The loss or a gradient has NaN/Inf. The optimizer's step was not taken."""


@HOOKS.register_module()
class FiniteHook(Hook):
    """Checks the loss and all gradients for NaN/Inf before every step, and before gradients are clipped.

    NaN/Inf stops the training with a :class:`NonFiniteError`, before the optimizer's step and without a new checkpoint.
    ``nonfinite_iter_N.pth`` in the work directory (``nonfinite_iter_N_rankR.pth`` of each rank with NaN/Inf, if there
    are several ranks) has what ``tools/replay.py`` needs to repeat the iteration: weights and buffers from before it,
    the seed, and the position and indices of its batch. With ``max_skips``, up to so many steps in a row are skipped
    instead, with a warning: weights, buffers and the optimizer's state stay, and the schedule continues.

    A total norm that overflows while every gradient is finite is fine. With a dynamic loss scale the scaler skips
    overflowing gradients itself, so only the loss is checked. All ranks decide alike. A check makes the CPU wait for
    the GPU once; with :class:`CheckpointHook` it also all-reduces the stop flag, in the same reduction.
    """

    def __init__(self, max_skips: int = 0):
        self.max_skips = max_skips
        self.skips_in_row = self.skips = 0
        self.batches: list[dict] = []  # since the last step: several where gradients are accumulated

    def before_train(self, runner: Runner) -> None:
        """Puts the check between the backward pass and the optimizer's step."""
        self.model = model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self.parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.buffers = _by_type(model.buffers())
        self.kept = _join(self.buffers)
        model.parse_losses = functools.partial(self._parse_losses, model.parse_losses)
        self.step = runner.optim_wrapper.step
        # MMEngine's schedulers mark the method and check for the mark.
        runner.optim_wrapper.step = functools.update_wrapper(functools.partial(self._step, runner), self.step)

    def after_train(self, runner: Runner) -> None:
        """Removes the check."""
        del self.model.parse_losses
        runner.optim_wrapper.step = self.step

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Notes which batch this is."""
        loop = runner.train_loop
        epoch, number = loop.position() if isinstance(loop, ExactLoop) else (runner.epoch, batch_idx)
        images = images_of(data_batch)
        self.batches.append(dict(iter=runner.iter, epoch=epoch, number=number, rank=get_rank(), images=images))

    def _parse_losses(self, parse_losses: Callable, losses: dict) -> tuple[Tensor, dict[str, Tensor]]:
        loss, self.logged = parse_losses(losses)
        self.batches[-1]['losses'] = {name: torch.as_tensor(value).detach() for name, value in self.logged.items()}
        return loss, self.logged

    def _step(self, runner: Runner, **kwargs: Any) -> None:
        nonfinite = self._nonfinite(runner.optim_wrapper)
        stop = next((hook.stop for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
        in_any_rank = stop.any_rank(nonfinite) if stop else any_rank(nonfinite)[0]
        fault = self._find_fault() if in_any_rank else None
        if fault is None:
            self.kept = _join(self.buffers)
            self.step(**kwargs)
            self.skips_in_row = 0
        else:
            _split(self.kept, self.buffers)
            text, ranks = fault
            if self.skips_in_row == self.max_skips:
                raise NonFiniteError(f'{text}. {self._save(runner, ranks)}')
            self.logged.clear()  # the log's means would be NaN, and hide the other iterations
            self.skips_in_row += 1
            self.skips += 1
            count = f'{self.skips_in_row} in a row of at most {self.max_skips}, {self.skips} in all'
            runner.logger.warning(f'{text}. The step is skipped: {count}')
        self.batches.clear()

    def _nonfinite(self, wrapper: OptimWrapper) -> Tensor:
        """Returns on the device whether the loss has NaN/Inf, or the norm of the gradients has or overflows."""
        values = [batch['losses']['loss'] for batch in self.batches]
        gradients = [value.grad for value in self.parameters.values() if value.grad is not None]
        if gradients:
            norm, scaler = _total_norm(gradients), getattr(wrapper, 'loss_scaler', None)
            if scaler and getattr(wrapper, '_scale_update_param', None) is None:
                # A dynamic scale is lowered, and the step skipped. At 1 or less, it is not what makes gradients
                # overflow. Scaling a 1 gives the scale without waiting for the device.
                norm = norm.masked_fill(scaler.scale(torch.ones_like(norm)) > 1, 0)
            values.append(norm)
        return ~torch.stack(values).isfinite().all()

    def _find_fault(self) -> tuple[str, list[int]] | None:
        """Returns a text that says where NaN/Inf is, and the ranks that have it, or None where all is finite."""
        for batch in self.batches:
            batch['losses'] = {name: value.item() for name, value in batch['losses'].items()}
        gradients = {name: value.grad for name, value in self.parameters.items() if value.grad is not None}
        bad = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
        of_ranks = all_gather_object((self.batches, bad))
        bad = max((names for _, names in of_ranks), key=len)
        batches = [batch for theirs, _ in of_ranks for batch in theirs]
        # If all losses are finite but a gradient is not, it may come from any of the batches.
        suspects = [batch for batch in batches if not math.isfinite(batch['losses']['loss'])] or batches
        losses = suspects[0]['losses']
        if not bad and math.isfinite(losses['loss']):
            return None
        parts = [name for name, value in losses.items() if 'loss' in name and not math.isfinite(value)]
        parts = [f'{name} {losses[name]:.4g}' for name in parts if name != 'loss']
        text = f'iteration {suspects[0]["iter"] + 1}: loss {losses["loss"]:.4g}' + (
            f' ({shorten(parts)})' if parts else ''
        )
        text += f', NaN/Inf in {len(bad)} of {len(gradients)} gradients' + (f': {shorten(bad)}' if bad else '')
        images = [image_name(image, batch['rank']) for batch in suspects for image in batch['images']]
        return f'{text}; images {shorten(images)}', sorted({batch['rank'] for batch in suspects})

    def _save(self, runner: Runner, ranks: list[int]) -> str:
        """Saves what a replay needs, in each of ``ranks``, and returns where it is and how to replay it."""
        rank, world_size = get_rank(), get_world_size()
        folder, stem = Path(runner.work_dir), f'nonfinite_iter_{runner.iter + 1}'
        paths = {one: folder / f'{stem}_rank{one}.pth' if world_size > 1 else folder / f'{stem}.pth' for one in ranks}
        failed = ''
        if rank in ranks:
            if isinstance(runner.train_loop, ExactLoop):
                batches_from = runner.train_loop.dataloader.batch_sampler.batches_from
                for batch in self.batches:
                    batch['indices'] = next(batches_from(batch['epoch'], batch['number'])).indices
            scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
            record = dict(
                state_dict={name: value.cpu() for name, value in self.model.state_dict().items()},
                seed=runner.seed,
                rank=rank,
                world_size=world_size,
                loss_scale=scaler.get_scale() if scaler else 1.0,
                batches=self.batches,
            )
            try:
                save(record, paths[rank])
            except (OSError, RuntimeError) as error:  # the latter is PyTorch's on a full disk
                failed = f' ({paths[rank]} could not be written: {error})'
        barrier()  # when one rank exits, launchers end the others
        config = folder / Path(runner.cfg.filename or f'{runner.timestamp}.py').name
        saved = list(map(str, paths.values()))
        command = shlex.join(['tools/replay.py', str(config), saved[0]])
        return (
            f'The step was not taken, and checkpoints are unchanged; saved {", ".join(saved)}{failed}; to skip such '
            f'steps use --cfg-options default_hooks.finite.max_skips=N; to find where NaN/Inf starts run: {command}'
        )


def _total_norm(gradients: list[Tensor]) -> Tensor:
    if hasattr(nn.utils, 'get_total_norm'):  # in torch 2.6 and later: few kernels for all
        return nn.utils.get_total_norm(gradients)
    norms = torch._foreach_norm(gradients) if hasattr(torch, '_foreach_norm') else [one.norm() for one in gradients]
    return torch.stack(norms).norm()


def _by_type(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    groups: dict[tuple, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    return list(groups.values())


def _join(groups: list[list[Tensor]]) -> list[Tensor]:
    """Returns a copy of the tensors of each group, in one vector: a few kernels for all."""
    return [torch.cat([tensor.flatten() for tensor in group]) for group in groups]


def _split(vectors: list[Tensor], groups: list[list[Tensor]]) -> None:
    """Writes the vectors of :func:`_join` back into the tensors."""
    for vector, group in zip(vectors, groups, strict=True):
        for tensor, part in zip(group, vector.split([tensor.numel() for tensor in group]), strict=True):
            tensor.copy_(part.view_as(tensor))


def images_of(data_batch: Any) -> list[dict]:
    """Returns ``path`` and ``id`` of the images in a loader's batch, as far as the pipeline packs them."""
    samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
    images = []
    for sample in samples if isinstance(samples, (list, tuple)) else ():
        path, number = sample.get('img_path'), sample.get('img_id')
        image = {} if path is None else dict(path=str(path))
        if number is not None:
            image['id'] = int(number) if isinstance(number, Integral) else str(number)
        images.append(image)
    return images


def image_name(image: dict, rank: int | None = None) -> str:
    """Returns how messages name an image of :func:`images_of`, with its rank if there are several."""
    notes = [f'id {image["id"]}'] if 'id' in image else []
    notes += [f'rank {rank}'] if get_world_size() > 1 else []
    return image.get('path', 'an image without a path') + (f' ({", ".join(notes)})' if notes else '')
