"""mmcv's operators and the losses in float32 under bfloat16, which mmcv's CUDA operators do not have."""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from pvt_mm.registry import HOOKS

# Classes, or bases of classes, outside of mmcv.ops that need float32. RoI extractors cast boxes to the features' dtype,
# and bfloat16 has steps of 4 pixels from 512 and of 8 from 1024. TOOD's head calls deform_conv2d as a function.
CLASSES = ('BaseRoIExtractor', 'TOODHead')


@HOOKS.register_module()
class Float32OpsHook(Hook):
    """Computes mmcv's operators, RoI extractors and losses in float32 while a model trains in bfloat16.

    mmcv's CUDA operators (``sigmoid_focal_loss``, ``roi_align``, ``nms``, deformable convolutions and others) take
    float32 and float16 only. The arguments of modules that call them are cast to float32, with autocast off inside.
    Operators return bfloat16 again, and losses stay float32. ``tools/train.py --amp bf16`` adds this hook; a config does
    with ``custom_hooks=[dict(type='pvt_mm.Float32OpsHook')]``.

    Args:
        classes: Names of more classes of modules to compute in float32, such as heads that call functions of mmcv.
    """

    priority = 'VERY_HIGH'  # before a hook that compiles the modules

    def __init__(self, classes: Sequence[str] = ()):
        self.classes = tuple(classes)

    def before_train(self, runner: Runner) -> None:
        """Adds the casts to the modules."""
        self.casts = float32_ops(runner.model, self.classes)

    def after_train(self, runner: Runner) -> None:
        """Removes them."""
        self.casts.close()


def float32_ops(model: nn.Module, classes: Sequence[str] = ()) -> contextlib.ExitStack:
    """Adds the casts of :class:`Float32OpsHook` to a model, and returns the context that removes them at its end."""
    casts, names = contextlib.ExitStack(), {*CLASSES, *classes}
    device = next(model.parameters()).device.type
    for module in model.modules():
        bases = type(module).__mro__
        is_loss = any('.models.losses' in base.__module__ for base in bases)
        if is_loss or any(base.__module__.startswith('mmcv.ops') or base.__name__ in names for base in bases):
            cast = _Float32(device, is_loss)
            casts.enter_context(module.register_forward_pre_hook(cast.before, with_kwargs=True))
            casts.enter_context(module.register_forward_hook(cast.after, always_call=True))
    return casts


class _Float32:
    """What is done before and after the forward pass of one module."""

    def __init__(self, device: str, is_loss: bool):
        self.device, self.is_loss = device, is_loss
        self.entered: list[tuple[torch.autocast, bool]] = []  # a stack, as a module may call itself

    def before(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        autocast = torch.autocast(self.device, enabled=False)
        autocast.__enter__()
        self.entered.append((autocast, _has_bfloat16([args, kwargs])))
        return _cast(args, torch.bfloat16, torch.float32), _cast(kwargs, torch.bfloat16, torch.float32)

    def after(self, module: nn.Module, args: tuple, output: Any) -> Any:
        autocast, was_bfloat16 = self.entered.pop()
        autocast.__exit__(None, None, None)
        return _cast(output, torch.float32, torch.bfloat16) if was_bfloat16 and not self.is_loss else output


def _has_bfloat16(value: Any) -> bool:
    if isinstance(value, (list, tuple, dict)):
        return any(map(_has_bfloat16, value.values() if isinstance(value, dict) else value))
    return isinstance(value, Tensor) and value.dtype == torch.bfloat16


def _cast(value: Any, source: torch.dtype, target: torch.dtype) -> Any:
    """Returns a value with the tensors of the dtype ``source``, in lists, tuples and dicts too, in ``target``."""
    if isinstance(value, Tensor):
        return value.to(target) if value.dtype == source else value
    if isinstance(value, dict):
        return {key: _cast(inner, source, target) for key, inner in value.items()}
    return type(value)(_cast(inner, source, target) for inner in value) if type(value) in (list, tuple) else value
