"""What the faster layers share: how they replace PyTorch's own, and questions about how a model is run."""

import torch
from torch import Tensor, nn

# NOTE: before torch 2.3 it is elsewhere.
_is_compiling = (torch.compiler if hasattr(torch.compiler, 'is_compiling') else torch._utils).is_compiling
_HOOKS = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')


def replace_layers(model: nn.Module, faster: dict[type[nn.Module], type[nn.Module]]) -> None:
    """Gives every layer whose class is a key of ``faster`` the class there, in place; subclasses stay.

    Parameters and their names do not change.
    """
    for module in model.modules():
        if type(module) in faster:
            module.__class__ = faster[type(module)]


def is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Returns whether calling ``layer`` does what ``kind`` does and nothing else, so that another way may replace it.

    It may not for subclasses, adapters in its place, parametrizations, pruning and other hooks.
    """
    # NOTE: nn.Module has no public question for hooks. One that lacks these names is not plain.
    return type(layer) is kind and not any(getattr(layer, name, True) for name in _HOOKS)


def is_eager() -> bool:
    """Returns whether a model runs as it is: neither compiled nor exported nor transformed by ``torch.func``.

    There PyTorch's own operators stay.
    """
    return not _is_compiling() and not torch.jit.is_tracing() and not _is_transformed()


def _is_transformed() -> bool:
    # NOTE: torch has no public question for it. Without it torch.func refuses autograd functions without setup_context.
    is_active = getattr(torch._C, '_are_functorch_transforms_active', None)
    return is_active is not None and is_active()


def is_eager_cpu(x: Tensor) -> bool:
    """Returns whether ``x`` is on a CPU, in a model for which :func:`is_eager` holds."""
    return x.device.type == 'cpu' and is_eager()


def mixed_dtype(x: Tensor) -> torch.dtype | None:
    """Returns the type to which CUDA's autocast casts ``x``, in a model for which :func:`is_eager` holds.

    None without autocast, on other devices, and for what is not float32.
    """
    if x.device.type != 'cuda' or x.dtype != torch.float32 or not torch.is_autocast_enabled() or not is_eager():
        return None
    if hasattr(torch, 'get_autocast_dtype'):  # torch >= 2.4
        return torch.get_autocast_dtype('cuda')
    return torch.get_autocast_gpu_dtype()
