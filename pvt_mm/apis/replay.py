"""Repeats an iteration that had NaN/Inf, and finds where NaN/Inf starts."""

import contextlib
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import Tensor, nn

from pvt_mm.checkpoint.reader import read_file
from pvt_mm.engine.hooks.finite_hook import image_name, images_of
from pvt_mm.engine.hooks.float32_ops_hook import float32_ops
from pvt_mm.engine.loading import Batch, DeterministicFetcher
from pvt_mm.engine.randomness import seed_all
from pvt_mm.utils.errors import CheckpointError, InputError, config_errors
from pvt_mm.utils.text import shorten


@dataclass
class Gradient:
    """The gradient of a parameter: the share of NaN/Inf in it, and the norm of the rest."""

    name: str
    share: float
    norm: float


@dataclass
class Value:
    """Where the first NaN/Inf of a forward pass is."""

    module: str  # the name of the first module that has NaN/Inf
    kind: str  # its class
    what: str  # 'output'; or 'input', if functions between the modules computed it
    low: float  # the smallest finite number in the module's input
    high: float  # the largest
    parameters: list[str]  # those of the module that have NaN/Inf


@dataclass
class Replay:
    """The results of a repeated iteration."""

    losses: list[dict[str, float]]  # by name, for each batch: one, or several where gradients were accumulated
    value: Value | None  # the first NaN/Inf of the forward pass
    gradient: str | None  # the first with NaN/Inf in the backward pass: of a parameter, or of a module's output
    gradients: list[Gradient]  # of all parameters, the worst first
    finite: bool  # whether all losses and gradients are


def read_record(path: str) -> dict:
    """Reads the record that :class:`FiniteHook` saved of an iteration.

    Raises:
        CheckpointError: The file cannot be read, or is not such a record.
    """
    content, needed = read_file(path), ('state_dict', 'seed', 'rank', 'world_size', 'loss_scale', 'batches')
    missing = [name for name in needed if not isinstance(content, dict) or name not in content]
    if missing:
        raise CheckpointError(
            f'{path} has no {", ".join(missing)}: give the nonfinite_iter_N.pth that training saved in its work '
            'directory when it stopped on NaN/Inf'
        )
    if not all('indices' in batch for batch in content['batches']):
        raise CheckpointError(
            f'{path} has no indices of its batches: only runs with a loop of this package, such as train_cfg.type='
            "'pvt_mm.EpochBasedTrainLoop', can be replayed"
        )
    return content


def load_batches(config: Config, record: dict) -> list:
    """Loads the batches of a record again, exactly as they were.

    Raises:
        InputError: The training data cannot be built, or a batch has other images than the record says.
    """
    cfg = {name: value for name, value in config.train_dataloader.items() if name != 'prefetch_factor'}
    with config_errors('the training data cannot be built'):
        loader = Runner.build_dataloader({**cfg, 'num_workers': 0, 'persistent_workers': False}, seed=record['seed'])
    max_unreadable = config.train_cfg.get('max_broken_images', 0)
    fetch = DeterministicFetcher(loader.dataset, record['seed'], record['rank'], max_unreadable)
    loaded = []
    for batch in record['batches']:
        try:
            loaded.append(loader.collate_fn(fetch(Batch(batch['epoch'], batch['number'], batch['indices']))))
            images = images_of(loaded[-1])
        except IndexError:  # there are fewer samples
            images = []
        if images != batch['images']:
            found = shorten(map(image_name, images)) or 'no images'
            raise InputError(
                f'batch {batch["number"]} of epoch {batch["epoch"]} is not what it was ({found}): give the config that '
                'the run saved in its work directory, and the data that it trained on'
            )
    return loaded


def half_precision(config: Config) -> torch.dtype | None:
    """Returns the dtype in which a config trains with mixed precision, None without it."""
    wrapper = config.optim_wrapper
    is_mixed = wrapper.get('type', '').split('.')[-1] == 'AmpOptimWrapper'
    return getattr(torch, wrapper.get('dtype') or 'float16') if is_mixed else None


def replay(model: nn.Module, record: dict, data: list, half: torch.dtype | None = None) -> Replay:
    """Repeats the forward and backward passes of a recorded iteration, without the optimizer's step.

    ``model`` is in training mode, with the weights of the record, and ``half`` is the dtype of mixed precision.
    """
    losses = []
    model.zero_grad()
    device = next(model.parameters()).device.type
    with Watch(model) as watch, float32_ops(model) if half == torch.bfloat16 else contextlib.nullcontext():
        for batch, data_batch in zip(record['batches'], data, strict=True):
            seed_all(record['seed'], record['rank'], batch['iter'])
            with torch.autocast(device, half, enabled=half is not None):
                found = model._run_forward(model.data_preprocessor(data_batch, True), mode='loss')
            loss, named = model.parse_losses(found)
            losses.append({name: value.item() for name, value in named.items()})
            (loss * record['loss_scale'] / len(data)).backward()
    gradients = []
    for name, value in model.named_parameters():
        if value.grad is not None:
            finite = value.grad.isfinite()
            norm = value.grad.double()[finite].norm().item() / record['loss_scale']
            gradients.append(Gradient(name, 1 - finite.float().mean().item(), norm))
    gradients.sort(key=lambda gradient: (gradient.share, gradient.norm), reverse=True)
    finite = all(math.isfinite(found['loss']) for found in losses) and not any(found.share for found in gradients)
    return Replay(losses, watch.value, watch.gradient, gradients, finite)


class Watch(contextlib.ExitStack):
    """A context in which the first NaN/Inf of a model's forward and backward passes are found."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.value: Value | None = None
        self.gradient: str | None = None
        for name, module in model.named_modules():
            if name and not name.startswith('data_preprocessor'):
                check = functools.partial(self._check_value, name)
                self.enter_context(module.register_forward_pre_hook(check, with_kwargs=True))
                self.enter_context(module.register_forward_hook(check, with_kwargs=True))
        for name, value in model.named_parameters():
            if value.requires_grad:
                self.enter_context(value.register_hook(functools.partial(self._check_gradient, name)))

    def _check_value(self, name: str, module: nn.Module, args: tuple, kwargs: dict, *outputs: Any) -> None:
        if self.value is None and not _all_finite(outputs or [args, kwargs]):
            what, parameters = ('output', module.named_parameters(prefix=name)) if outputs else ('input', ())
            bad = [key for key, parameter in parameters if not _all_finite(parameter)]
            self.value = Value(name, type(module).__name__, what, *_range([args, kwargs]), bad)
        for output in _floats(outputs):
            if output.requires_grad:
                output.register_hook(functools.partial(self._check_gradient, f'the output of {name}'))

    def _check_gradient(self, what: str, gradient: Tensor) -> None:
        if self.gradient is None and not _all_finite(gradient):
            self.gradient = what


def _floats(value: Any) -> Iterator[Tensor]:
    """Yields the floating-point tensors in a value: itself, or in lists, tuples and dicts."""
    if isinstance(value, Tensor) and value.is_floating_point():
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _floats(inner)


def _all_finite(value: Any) -> bool:
    return all(tensor.isfinite().all() for tensor in _floats(value))


def _range(value: Any) -> tuple[float, float]:
    """Returns the smallest and the largest finite number, NaN if there is none."""
    finite = [tensor.detach()[tensor.isfinite()].double() for tensor in _floats(value)]
    finite = torch.cat(finite or [torch.empty(0)])
    return tuple(bound.item() for bound in finite.aminmax()) if len(finite) else (math.nan, math.nan)
