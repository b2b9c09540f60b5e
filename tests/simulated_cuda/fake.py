"""Tensors on a simulated CUDA device, and what a step costs there, counted by operator."""

from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
OVERWRITING = {'copy_', 'fill_', 'zero_', 'bernoulli_', 'normal_', 'uniform_', 'random_'}
LAUNCHING_NOTHING = {'empty', 'empty_like', 'empty_strided', 'new_empty', 'new_empty_strided', '_unsafe_view'}
READING_BACK = {'_local_scalar_dense', 'nonzero', 'masked_select', 'is_nonzero', 'equal'}


class FakeCuda(TorchDispatchMode):
    """Within it, tensors on CUDA have no values and no memory, and those on the CPU are real.

    Reading a value of CUDA's raises, as does an operator on tensors of both devices.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)

    def __enter__(self) -> Any:
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(values, device='cuda') comes here for its copy
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(False)

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get('device')
        if (device is not None and torch.device(device).type == 'cuda') or any(
            isinstance(leaf, FakeTensor) for leaf in tree_leaves((args, kwargs))
        ):
            with self.fake:
                return function(*args, **kwargs)
        return function(*args, **kwargs)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Runs the operator that CUDA's attention would choose, as a CPU build cannot choose one."""
    d = q.shape[-1]
    scale = d**-0.5 if scale is None else scale
    if torch.is_autocast_enabled():
        q, k, v = (tensor.to(torch.get_autocast_dtype('cuda')) for tensor in (q, k, v))
    if attn_mask is not None or is_causal or (q.dtype == torch.float32 and d % 4):
        return aten._scaled_dot_product_attention_math(q, k, v, attn_mask, dropout_p, is_causal, scale=scale)[0]
    if q.dtype == torch.float32:
        keep = torch.is_grad_enabled()
        return aten._scaled_dot_product_efficient_attention(q, k, v, None, keep, dropout_p, scale=scale)[0]
    if d % 8:
        q, k, v = (F.pad(tensor, (0, -d % 8)) for tensor in (q, k, v))
    return aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, scale=scale)[0][..., :d]


def to_fake_cuda(model: nn.Module) -> nn.Module:
    """Gives a model parameters and buffers on CUDA, within a :class:`FakeCuda`."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = torch.empty_like(parameter, device='cuda:0')
                module._parameters[name] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device='cuda:0')
    return model


class Count(TorchDispatchMode):
    """Counts what operators would do on a GPU.

    An operator is one kernel, and moves the bytes of the tensors that it reads and writes: once each, and once what is
    expanded. Views and empty tensors are free. Fused attention reads and writes its tensors alone.

    Attributes:
        kernels, moved: By the operator's name, the number of calls, and the bytes.
        synchronizations: Operators for which the CPU waits.
        on_cpu: Operators with a tensor on the CPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.moved: Counter[str] = Counter()
        self.synchronizations: list[str] = []
        self.on_cpu: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        given = _tensors((args, kwargs))
        devices = {tensor.device.type for tensor in given}
        if name in READING_BACK and 'cuda' in devices:
            self.synchronizations.append(str(function))
        result = function(*args, **kwargs)
        devices |= {tensor.device.type for tensor in _tensors(result)}
        if 'cpu' in devices:
            self.on_cpu.append(str(function))
            if 'cuda' in devices and name in ('_to_copy', 'copy_'):
                self.synchronizations.append(str(function))
        elif _launches(function, name, result):
            self.kernels[name] += 1
            self.moved[name] += sum(map(_bytes, _read(function, name, args, kwargs) + _tensors(result)))
        return result


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _launches(function: Any, name: str, result: Any) -> bool:
    aliases = [value.alias_info for value in function._schema.returns]
    is_view = any(alias is not None and not alias.is_write for alias in aliases)
    writes = bool(_tensors(result)) or not aliases  # operators on lists of tensors return nothing
    return writes and not is_view and name not in LAUNCHING_NOTHING


def _read(function: Any, name: str, args: tuple, kwargs: dict) -> list[Tensor]:
    if name.startswith('new_') or name.endswith('_like'):
        return []
    outputs = {argument.name for argument in function._schema.arguments if argument.is_out}
    read = {key: value for key, value in kwargs.items() if key not in outputs}
    return _tensors((args[1:] if name in OVERWRITING else args, read))


def _bytes(tensor: Tensor) -> int:
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Sums the memory of what the backward pass needs, the parameters of ``model`` excepted."""

    def __init__(self, model: nn.Module) -> None:
        self.storages: dict[int, tuple[int, Any]] = {}
        parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in parameters:
                self.storages[storage._cdata] = storage.nbytes(), storage  # kept, so that no other gets its number
            return tensor

        super().__init__(keep, lambda tensor: tensor)

    @property
    def total(self) -> int:
        return sum(size for size, _ in self.storages.values())
