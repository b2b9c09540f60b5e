"""MMCV's operators on tensors that are not contiguous, such as the channels-last maps of a PVT and of an FPN after it.

Most of them read a tensor as if it were contiguous, whatever its strides: RoI align then returns features of other
places and channels, without an error. Here they get a copy that is contiguous, of inputs and of gradients.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.autograd import Function


def make_operators_contiguous() -> None:
    """Makes MMCV's operators take tensors of any memory format, for the rest of the process."""
    try:
        import mmcv.ops  # noqa: F401
    except Exception:  # of MMCV without operators or of another PyTorch's: none can be called
        return
    for function in operators():
        for name in ('forward', 'backward'):
            if name in vars(function) and not hasattr(getattr(function, name), 'takes_any_format'):
                setattr(function, name, staticmethod(_with_contiguous(getattr(function, name))))


def operators() -> Iterator[type[Function]]:
    """Yields MMCV's operators that are imported."""
    found = [Function]
    for function in found:
        found += [one for one in function.__subclasses__() if one not in found]
        if function.__module__.startswith('mmcv.ops'):
            yield function


def _with_contiguous(method: Callable) -> Callable:
    @functools.wraps(method)
    def run(ctx: Any, *values: Any, **more: Any) -> Any:
        return method(ctx, *map(_contiguous, values), **{name: _contiguous(value) for name, value in more.items()})

    run.takes_any_format = True  # type: ignore[attr-defined]
    return run


def _contiguous(value: Any) -> Any:
    if not isinstance(value, Tensor) or value.is_contiguous():
        return value
    # Some operators ask a tensor itself whether it needs a gradient.
    return value.contiguous().requires_grad_(value.requires_grad)
