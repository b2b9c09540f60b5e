"""MMCV's operators on feature maps that are channels-last in memory, as those of a PVT and of an FPN after it.

Most of them read a map as if it were (B, C, H, W) in memory, whatever its strides: RoI align then returns features of
other places and channels, without an error. Here they get a copy that is. Other maps are passed on as they are.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any

from torch import Tensor

# The modules of mmcv.ops and their functions on maps.
FUNCTIONS = {
    'border_align': 'BorderAlignFunction',
    'carafe': 'CARAFEFunction',
    'deform_conv': 'DeformConv2dFunction',
    'deform_roi_pool': 'DeformRoIPoolFunction',
    'modulated_deform_conv': 'ModulatedDeformConv2dFunction',
    'roi_align': 'RoIAlignFunction',
    'roi_align_rotated': 'RoIAlignRotatedFunction',
    'roi_pool': 'RoIPoolFunction',
}


def make_maps_contiguous() -> None:
    """Makes MMCV's operators on maps take any memory format, for the rest of the process."""
    for module, name in FUNCTIONS.items():
        function = getattr(importlib.import_module(f'mmcv.ops.{module}'), name)
        if not hasattr(function.forward, '__wrapped__'):
            function.forward = staticmethod(_with_contiguous_maps(function.forward))


def _with_contiguous_maps(forward: Callable) -> Callable:
    @functools.wraps(forward)
    def run(ctx: Any, *values: Any, **more: Any) -> Any:
        return forward(ctx, *(_contiguous(value) for value in values), **more)

    return run


def _contiguous(value: Any) -> Any:
    return value.contiguous() if isinstance(value, Tensor) else value
