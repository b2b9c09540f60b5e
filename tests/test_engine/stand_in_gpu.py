"""A stand-in for a GPU: tensors with values, of which every use by the CPU that would wait for a GPU is counted."""

import functools
from collections import Counter

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device('meta')  # a device without hardware for which PyTorch has a backward pass
# Those whose result, or its shape, the CPU needs.
WAITING = {'_local_scalar_dense', 'nonzero', 'equal', 'masked_select', '_unique2', 'unique_dim', 'unique_consecutive'}
INDEXING = {'index', 'index_put', 'index_put_', '_index_put_impl_'}  # with a mask


class OnDevice(Tensor):
    """A tensor of the stand-in, which needs :class:`StandInGPU` for all it does."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, value: Tensor) -> Tensor:
        return Tensor._make_wrapper_subclass(
            cls, value.size(), strides=value.stride(), dtype=value.dtype, device=DEVICE
        )

    def __init__(self, value: Tensor):
        self.value = value  # on the CPU

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f'{func} outside of StandInGPU')


class StandInGPU(TorchDispatchMode):
    """Runs the operators, and counts in ``waits`` those that the CPU would wait for.

    As on a GPU, an operator takes tensors of one device, and numbers (tensors without dimensions) of the CPU.
    """

    def __init__(self):
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.operators = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), func.overloadpacket.__name__
        tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
        ours = {id(one.value): one for one in tensors if isinstance(one, OnDevice)}
        target = kwargs.get('device') or (DEVICE if ours else None)
        if ours or target == DEVICE:
            self.operators += 1
            self._count(name, func, args, kwargs, tensors)
        if 'device' in kwargs:
            kwargs['device'] = 'cpu'
        result = func(*tree_map(value_of, args), **tree_map(value_of, kwargs))
        if name == 'copy_':
            return args[0]
        return tree_map(functools.partial(self._wrap, ours), result) if target == DEVICE else result

    def _count(self, name, func, args, kwargs, tensors) -> None:
        on_cpu = [one for one in tensors if not isinstance(one, OnDevice)]
        if name == 'copy_':
            self.waits[name] += 0 < len(on_cpu) < len(tensors) and not any(args[2:])
        elif name == '_to_copy':
            leaves = not on_cpu and kwargs.get('device') not in (None, DEVICE)
            self.waits[name] += (leaves or bool(on_cpu)) and not kwargs.get('non_blocking')
        elif any(one.dim() for one in on_cpu):
            raise RuntimeError(f'{func} takes tensors of the CPU and of the GPU')
        else:
            self.waits[name] += name in WAITING or (name in INDEXING and any(is_mask(one) for one in args[1]))

    @staticmethod
    def _wrap(ours, result):
        if not isinstance(result, Tensor):
            return result
        return ours[id(result)] if id(result) in ours else OnDevice(result)


def is_mask(index) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def value_of(value):
    return value.value if isinstance(value, OnDevice) else value


def to_device(module: nn.Module) -> None:
    """Moves the parameters and buffers of a model to the stand-in."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(OnDevice(parameter.data), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = OnDevice(buffer)
