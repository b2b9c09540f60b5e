"""An iteration that was not finite, done again, and where in it what is not finite begins."""

import contextlib
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader
from torch.utils.hooks import RemovableHandle

from pvt_mm.checkpoint import CheckpointError, read_file
from pvt_mm.engine.finite_hook import image_name, images_of
from pvt_mm.engine.inference import load_weights
from pvt_mm.engine.loading import exact_loader, load_batch
from pvt_mm.engine.randomness import seed_all
from pvt_mm.errors import WRONG_CONFIG, InputError

RECORDED = ('state_dict', 'seed', 'rank', 'world_size', 'loss_scale', 'batches')


@dataclass
class Gradient:
    """The gradient of a parameter: the share of it that is not finite, and the norm of the rest."""

    name: str
    share: float
    norm: float


@dataclass
class Value:
    """Where a value arose that is not finite.

    Attributes:
        module: The name of the first module whose output is not finite.
        kind: The module's class.
        what: ``output``; or ``input``, where no module's output is that, but functions computed the module's input.
        low: The least finite number in the module's input.
        high: The greatest.
        parameters: The module's own that are not finite.
    """

    module: str
    kind: str
    what: str
    low: float
    high: float
    parameters: list[str]


@dataclass
class Replay:
    """What an iteration gave.

    Attributes:
        losses: By name, of each batch: one, or as many as gradients were accumulated over.
        value: Where the first value arose that is not finite.
        gradient: What the first gradient is of: a parameter, or the output of a module.
        gradients: Every parameter's, the worst first.
    """

    losses: list[dict[str, float]]
    value: Value | None
    gradient: str | None
    gradients: list[Gradient] = field(repr=False)

    @property
    def finite(self) -> bool:
        """Whether all losses and gradients are."""
        losses = all(math.isfinite(losses['loss']) for losses in self.losses)
        return losses and not any(gradient.share for gradient in self.gradients)


def read_record(path: str) -> dict:
    """Reads what :class:`FiniteHook` wrote of an iteration.

    Raises:
        CheckpointError: It cannot be read, or is something else.
    """
    content = read_file(path)
    missing = [name for name in RECORDED if not isinstance(content, dict) or name not in content]
    if missing:
        raise CheckpointError(
            f'{path} has no {", ".join(missing)}: give the nonfinite_iter_N.pth that training has left in its work '
            'directory where it stopped on a loss or gradient that was not finite'
        )
    return content


def build_model(config: Config, path: str) -> nn.Module:
    """Builds the model of a config for training, with the weights of a record."""
    init_default_scope(config.get('default_scope', 'mmengine'))
    try:
        model = MODELS.build(config.model)
    except WRONG_CONFIG as error:
        raise InputError(f'the config cannot be built: {type(error).__name__}: {error}') from error
    load_weights(model, path)
    return revert_sync_batchnorm(model).to(get_device()).train()


def build_loader(config: Config, record: dict) -> DataLoader:
    """Builds the loader of the training data as the process that wrote a record had it, without workers."""
    cfg = {name: value for name, value in config.train_dataloader.items() if name != 'prefetch_factor'}
    cfg.update(num_workers=0, persistent_workers=False)
    try:
        with _as_process(record['rank'], record['world_size']):
            loader = Runner.build_dataloader(cfg, seed=record['seed'])
            return exact_loader(loader, record['seed'], config.train_cfg.get('max_broken_images', 0))
    except WRONG_CONFIG as error:
        raise InputError(f'the training data cannot be built: {type(error).__name__}: {error}') from error


@contextlib.contextmanager
def _as_process(rank: int, world_size: int) -> Iterator[None]:
    """Is, for samplers that ask which of how many processes this is, one of a training's, without the others."""
    if world_size == 1:
        yield
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group('fake', store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def load_batches(loader: DataLoader, record: dict) -> list:
    """Loads the batches of a record again.

    Raises:
        InputError: They are of other images than those that the record names.
    """
    loaded = []
    for batch in record['batches']:
        try:
            loaded.append(load_batch(loader, batch['epoch'], batch['number']))
        except IndexError as error:
            found = str(error)
        else:
            found = ', '.join(map(image_name, images_of(loaded[-1])))
            if images_of(loaded[-1]) == batch['images']:
                continue
        raise InputError(
            f'batch {batch["number"]} of epoch {batch["epoch"]} is not what it was ({found}): give the config that the '
            'run left in its work directory, with the data where it was'
        )
    return loaded


def half_of(config: Config) -> torch.dtype | None:
    """Returns the type in which a config trains in mixed precision, None where it does not."""
    wrapper = config.optim_wrapper
    if wrapper.get('type', '').split('.')[-1] != 'AmpOptimWrapper':
        return None
    return getattr(torch, wrapper.get('dtype') or 'float16')


def replay(model: nn.Module, record: dict, data: list, half: torch.dtype | None = None) -> Replay:
    """Does a recorded iteration again: its forward passes and its backward passes, and no step.

    Args:
        model: The model of :func:`build_model`.
        record: See :func:`read_record`.
        data: The batches of :func:`load_batches`.
        half: The type of mixed precision; None without it.
    """
    losses = []
    model.zero_grad()
    device = next(model.parameters()).device.type
    with Watch(model) as watch:
        for batch, data_batch in zip(record['batches'], data, strict=True):
            seed_all(record['seed'], record['rank'], batch['iter'])
            with torch.autocast(device, half, enabled=half is not None):
                found = model._run_forward(model.data_preprocessor(data_batch, True), mode='loss')
            loss, named = model.parse_losses(found)
            losses.append({name: value.item() for name, value in named.items()})
            (loss * record['loss_scale'] / len(data)).backward()
    gradients = [
        _gradient(name, value.grad / record['loss_scale'])
        for name, value in model.named_parameters()
        if value.grad is not None
    ]
    gradients.sort(key=lambda gradient: (gradient.share, gradient.norm), reverse=True)
    return Replay(losses, watch.value, watch.gradient, gradients)


def _gradient(name: str, gradient: Tensor) -> Gradient:
    finite = gradient.isfinite()
    return Gradient(name, 1 - finite.float().mean().item(), gradient.double()[finite].norm().item())


class Watch:
    """Finds, within a ``with`` block, where the first value and the first gradient arise that are not finite."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.value: Value | None = None
        self.gradient: str | None = None
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> 'Watch':
        for name, module in self.model.named_modules():
            if name and not name.startswith('data_preprocessor'):
                before, after = functools.partial(self._before, name), functools.partial(self._after, name)
                self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
                self._handles.append(module.register_forward_hook(after, with_kwargs=True))
        for name, value in self.model.named_parameters():
            if value.requires_grad:
                self._handles.append(value.register_hook(functools.partial(self._gradient_of, name)))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if self.value is None and not _finite(args, kwargs):  # computed between modules, by functions
            self.value = Value(name, type(module).__name__, 'input', *_range(args, kwargs), [])

    def _after(self, name: str, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if self.value is None and not _finite(output):
            own = [f'{name}.{key}' for key, value in module.named_parameters() if not _finite(value)]
            self.value = Value(name, type(module).__name__, 'output', *_range(args, kwargs), own)
        for value in _floats(output):
            if value.requires_grad:
                value.register_hook(functools.partial(self._gradient_of, f'the output of {name}'))

    def _gradient_of(self, what: str, gradient: Tensor) -> None:
        if self.gradient is None and not _finite(gradient):
            self.gradient = what


def _floats(*values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _finite(*values: Any) -> bool:
    return all(value.isfinite().all() for value in _floats(*values))


def _range(*values: Any) -> tuple[float, float]:
    """Returns the least and the greatest finite number, NaN where there is none."""
    finite = [value[value.isfinite()] for value in _floats(*values)]
    finite = torch.cat([value.detach().flatten().double() for value in finite] or [torch.empty(0)])
    return tuple(value.item() for value in finite.aminmax()) if len(finite) else (math.nan, math.nan)
