"""The dense parts of a model, compiled by ``torch.compile`` for images of any size."""

from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from types import MethodType

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from pvt_mm.registry import HOOKS
from pvt_mm.utils.errors import InputError
from pvt_mm.utils.text import shorten

PARTS = ('backbone', 'neck', 'rpn_head', 'bbox_head', 'decode_head', 'auxiliary_head', 'head')


@HOOKS.register_module()
class CompileHook(Hook):
    """Compiles the ``forward`` of backbone, neck and dense heads, each as one graph for images of any size.

    A part is compiled at its first batch, which takes up to minutes, and once more for its first batch in eval mode. It
    is compiled again where the batch size becomes 1, or where two sizes that were equal in the first batch by chance
    are not. With Inductor, as of torch 2.13 on a CPU, one graph for all sizes holds in eval mode only: in training the
    backward passes of its convolutions are compiled again for each new size, and after 8 sizes a part runs eagerly. So
    train at few sizes, or measure first. Weights, the names in checkpoints, EMA and resuming are those of an eager run.
    Dropout and stochastic depth draw other random numbers than in an eager run, of the same distribution. Activation
    checkpointing (``with_cp``) needs torch 2.4 or later here.

    MMEngine's own setting, ``compile=True``, compiles the whole training step instead. There the losses, the assignment
    of targets and the samplers have shapes that depend on the boxes of each image: the step falls into many graphs,
    which are compiled again and again, up to PyTorch's limit. Here they stay eager, as do the heads of regions of
    interest, whose number of regions changes.

    Args:
        parts: Dotted names of submodules; None for those of ``PARTS`` that the model has. In a list of modules, such as
            several auxiliary heads, each is compiled.
        backend: As in ``torch.compile``, like the arguments below.
        mode: ``'reduce-overhead'`` and ``'max-autotune'`` use CUDA graphs, one for each size of the images: they are
            for images of one size.
        options: Options of the backend. Inductor's ``layout_optimization`` is off unless it is set here or by ``mode``.
        dynamic: True for any size; False compiles again for every size; None tries False and then True.
        fullgraph: Whether a part that is not one graph is an error.

    Raises:
        InputError: ``torch.compile`` does not run here or refuses an argument, or the model lacks a part.
    """

    def __init__(
        self,
        parts: Sequence[str] | None = None,
        backend: str | Callable = 'inductor',
        mode: str | None = None,
        options: dict | None = None,
        dynamic: bool | None = True,
        fullgraph: bool = False,
    ):
        if backend == 'inductor' and mode is None:
            # NOTE: with it, PyTorch 2.13 cannot compile the training of maps of any size ("cannot determine truth value
            # of Relational"). It would make convolutions channels-last, as PVT's maps are.
            options = {'layout_optimization': False, **(options or {})}
        self.parts = parts
        self.arguments = dict(backend=backend, mode=mode, options=options, dynamic=dynamic, fullgraph=fullgraph)
        self.compiled: list[nn.Module] = []
        try:
            torch.compile(_nothing, **self.arguments)
        except (RuntimeError, TypeError) as error:  # the former also where Python is newer than torch.compile supports
            raise InputError(f'CompileHook: torch.compile: {error}') from error

    def before_run(self, runner: Runner) -> None:
        """Replaces the ``forward`` of each part; nothing is compiled before it is called."""
        model = _unwrapped(runner.model)
        names = [name for name in PARTS if getattr(model, name, None)] if self.parts is None else self.parts
        for name in names:
            for module in _modules(model, name):
                # A method of the class, bound again, and not the compiled method of the module: a copy of the model, as
                # of EMA, then runs with its own weights. Modules stay what they are, so names of weights do not change.
                module.forward = MethodType(torch.compile(type(module).forward, **self.arguments), module)
                self.compiled.append(module)
        runner.logger.info(f'compiled at their first batch: {shorten(names, len(PARTS)) or "no part of this model"}')

    def after_run(self, runner: Runner) -> None:
        """Gives the parts their own ``forward`` back."""
        for module in self.compiled:
            vars(module).pop('forward', None)
        self.compiled.clear()


def _nothing() -> None:
    """What :class:`CompileHook` tries its arguments on."""


def _unwrapped(model: nn.Module) -> nn.Module:
    """Returns the model inside the wrappers for several ranks and for test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def _modules(model: nn.Module, name: str) -> Iterator[nn.Module]:
    """Yields the submodule of a name, or those in a list of modules."""
    try:
        part = attrgetter(name)(model)
    except AttributeError as error:
        raise InputError(f'CompileHook: parts: the {type(model).__name__} has no {name}') from error
    modules = part if isinstance(part, nn.ModuleList) else [part]
    yield from map(_unwrapped, modules)
