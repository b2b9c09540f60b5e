"""What needs float32 in a model that trains in bfloat16: mmcv's operators, boxes and losses."""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from pvt_mm.registry import HOOKS

# MMDetection gives anchors and boxes the dtype of a head's predictions or an extractor's features, and bfloat16 has
# steps of 4 pixels from 512 and of 8 from 1024.
HEADS = {'BaseDenseHead', 'DETRHead'}
OPERATORS = {'BaseRoIExtractor', 'TOODHead'}  # in addition to mmcv.ops; TOOD's head calls deform_conv2d as a function


@HOOKS.register_module()
class Float32OpsHook(Hook):
    """Computes mmcv's operators, boxes and losses in float32 while a model trains in bfloat16.

    mmcv's CUDA operators (``sigmoid_focal_loss``, ``roi_align``, ``nms``, deformable convolutions and others) take
    float32 and float16 only. Modules that call them, RoI extractors and losses get their arguments in float32, with
    autocast off inside. Operators return bfloat16 again. Losses and the predictions of dense heads are float32.
    ``tools/train.py --amp bf16`` adds this hook. In a config: ``custom_hooks=[dict(type='pvt_mm.Float32OpsHook')]``.

    Args:
        operators: Names of more classes of modules that call operators of mmcv, and so need float32 inside.
    """

    def __init__(self, operators: Sequence[str] = ()):
        self.operators = tuple(operators)

    def before_train(self, runner: Runner) -> None:
        """Adds the casts to the modules."""
        self.casts = float32_ops(runner.model, self.operators)

    def after_train(self, runner: Runner) -> None:
        """Removes them."""
        self.casts.close()


def float32_ops(model: nn.Module, operators: Sequence[str] = ()) -> contextlib.ExitStack:
    """Adds the casts of :class:`Float32OpsHook` to a model, and returns the context that removes them at its end."""
    casts = contextlib.ExitStack()
    device = next(model.parameters()).device.type
    for module in model.modules():
        names = {base.__name__ for base in type(module).__mro__}
        packages = [base.__module__ for base in type(module).__mro__]
        is_loss = any('.models.losses' in package for package in packages)
        is_operator = any(package.startswith('mmcv.ops') for package in packages) or names & {*OPERATORS, *operators}
        stays_float32 = is_loss or bool(names & HEADS)
        if is_loss or is_operator:
            inside = _Float32Inside(device, back=not stays_float32)
            casts.enter_context(module.register_forward_pre_hook(inside.enter, with_kwargs=True))
            casts.enter_context(module.register_forward_hook(inside.leave, always_call=True))
        elif stays_float32:
            casts.enter_context(module.register_forward_hook(_to_float32))
    return casts


class _Float32Inside:
    """The hooks before and after the forward pass of one module that is computed in float32."""

    def __init__(self, device: str, back: bool):
        self.device, self.back = device, back
        self.entered: list[tuple[torch.autocast, bool]] = []  # a stack, as a module may call itself

    def enter(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        autocast = torch.autocast(self.device, enabled=False)
        autocast.__enter__()
        self.entered.append((autocast, _has_bfloat16([args, kwargs])))
        return _cast(args, torch.bfloat16, torch.float32), _cast(kwargs, torch.bfloat16, torch.float32)

    def leave(self, module: nn.Module, args: tuple, output: Any) -> Any:
        autocast, had_bfloat16 = self.entered.pop()
        autocast.__exit__(None, None, None)
        return _cast(output, torch.float32, torch.bfloat16) if self.back and had_bfloat16 else output


def _to_float32(module: nn.Module, args: tuple, output: Any) -> Any:
    return _cast(output, torch.bfloat16, torch.float32)


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
