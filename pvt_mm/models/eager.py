"""Where the faster layers of this package replace PyTorch's own: questions about how a model is run."""

import torch
from torch import Tensor

# NOTE: torch 2.1 has it under another name.
_is_compiling = getattr(torch.compiler, 'is_compiling', torch._utils.is_compiling)


def is_eager() -> bool:
    """Returns whether a model runs as it is, neither compiled nor exported, which keeps PyTorch's operators."""
    return not _is_compiling() and not torch.jit.is_tracing()


def is_eager_cpu(x: Tensor) -> bool:
    """Returns whether ``x`` is on a CPU, in a model that is neither compiled nor exported."""
    return x.device.type == 'cpu' and is_eager()


def mixed_dtype(x: Tensor) -> torch.dtype | None:
    """Returns the type to which CUDA's autocast casts ``x``, in a model that is neither compiled nor exported.

    None without autocast, on other devices, and for what is not float32.
    """
    if not is_eager() or x.device.type != 'cuda' or x.dtype != torch.float32 or not torch.is_autocast_enabled():
        return None
    if hasattr(torch, 'get_autocast_dtype'):  # torch >= 2.4
        return torch.get_autocast_dtype('cuda')
    return torch.get_autocast_gpu_dtype()
