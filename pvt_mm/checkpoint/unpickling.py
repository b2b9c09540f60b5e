"""Reading a pickle that finds and calls nothing but what is on a list: that of what checkpoints hold next to tensors.

PyTorch's ``weights_only=True`` can be given such a list from 2.6 on. Before, and for pickle protocols that it does not
know, :class:`AllowListUnpickler` does what it does.
"""

import argparse
import contextlib
import functools
import importlib
import os
import pickle
import tarfile
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from types import SimpleNamespace
from typing import IO, Any, ClassVar
from unittest import mock

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim import OneCycleParamScheduler

CAN_EXTEND_TORCH = torch.__version__ >= '2.6'  # from when on `safe_globals` takes names
# What PyTorch writes for tensors, as far as this version has it; torch.load finds the types of storages on its own.
TORCH_NAMES = (
    *(f'torch._utils._rebuild_{kind}' for kind in ('tensor', 'tensor_v2', 'tensor_v3', 'sparse_tensor', 'qtensor')),
    *(f'torch._utils._rebuild_{kind}' for kind in ('parameter', 'parameter_with_state', 'meta_tensor_no_storage')),
    *('torch._tensor._rebuild_from_type_v2', 'torch.nn.parameter.Parameter', 'torch.Tensor', 'torch.Size'),
    *('torch.device', 'torch.serialization._get_layout', 'torch.storage.UntypedStorage', 'torch.per_tensor_affine'),
    *('collections.OrderedDict', 'collections.Counter', '_codecs.encode'),
    *('builtins.bytearray', 'builtins.complex', 'builtins.set'),
)


def allowed_globals() -> dict[str, Any]:
    """Returns by name what checkpoints hold next to tensors, and which runs no code.

    MMEngine's hold the history of the logged values, the state of schedulers, NumPy's scalars and random states; the
    authors' training its command line. NumPy 2 writes ``numpy._core`` where NumPy 1 wrote ``numpy.core``; whichever is
    installed, both names are found.
    """
    arrays = {
        f'numpy.{core}.multiarray.{name}': value.__reduce__()[0]
        for name, value in {'_reconstruct': np.empty(0), 'scalar': np.float64(0)}.items()
        for core in ('core', '_core')
    }
    dtypes = {type(np.dtype(kind)) for kind in f'?{np.typecodes["AllInteger"]}{np.typecodes["AllFloat"]}'}
    owners = [bytes, argparse.Namespace, HistoryBuffer, OneCycleParamScheduler, np.ndarray, np.dtype, *dtypes]
    classes = {f'{owner.__module__}.{owner.__qualname__}': owner for owner in owners}
    return {**classes, **arrays, 'builtins.getattr': _method_of_mmengine}


def _method_of_mmengine(owner: Any, name: str) -> Any:
    """The uses that MMEngine's checkpoints have for ``getattr``, which reaches everything if left alone."""
    annealing = owner is OneCycleParamScheduler and name in ('_annealing_cos', '_annealing_linear')
    if not annealing and (owner is not HistoryBuffer or name.startswith('_')):
        raise pickle.UnpicklingError('GLOBAL builtins.getattr')
    return getattr(owner, name)


def load(path: str, map_location: str, allowed: dict[str, Any]) -> Any:
    """Returns the content of a file of ``torch.save`` that asks for what PyTorch writes and ``allowed``, and no more.

    Raises:
        pickle.UnpicklingError: It asks for more, or is damaged. More is named as ``GLOBAL module.name``.
        Exception: It is damaged, or not a checkpoint, which raises anything.
    """
    if CAN_EXTEND_TORCH:
        names: list[Any] = [(value, name) for name, value in allowed.items()]
        try:
            with torch.serialization.safe_globals(names):
                return torch.load(path, map_location=map_location, weights_only=True)
        except pickle.UnpicklingError as error:
            if 'Unsupported operand' not in str(error):
                raise

    class Unpickler(AllowListUnpickler):
        found: ClassVar = {**_torch_globals(), **allowed}

    # What torch.load would read without the unpickler: TorchScript, and the files of PyTorch 0.1.9.
    script, archive = RuntimeError('it is a TorchScript archive'), tarfile.ReadError('not read')
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch.jit, 'load', side_effect=script))
        stack.enter_context(mock.patch.object(tarfile, 'open', side_effect=archive))
        stack.enter_context(mock.patch.dict(os.environ, TORCH_FORCE_WEIGHTS_ONLY_LOAD='0'))
        return torch.load(path, map_location, _pickle_module(Unpickler), weights_only=False)


def load_trusted(path: str, map_location: str, allowed: dict[str, Any]) -> Any:
    """Returns the content of a file of ``torch.save``, running what it asks for. NumPy has the names of ``allowed``."""
    arrays = {name: value for name, value in allowed.items() if name.startswith('numpy.')}

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            return arrays.get(f'{module}.{name}') or super().find_class(module, name)

    return torch.load(path, map_location, _pickle_module(Unpickler), weights_only=False)


def _pickle_module(unpickler: Callable) -> Any:
    """Returns what torch.load uses of the module ``pickle``."""
    return SimpleNamespace(
        __name__='pickle', Unpickler=unpickler, load=lambda file, **settings: unpickler(file, **settings).load()
    )


@functools.cache
def _torch_globals() -> dict[str, Any]:
    found: dict[str, Any] = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    for path in TORCH_NAMES:
        module, _, name = path.rpartition('.')
        with contextlib.suppress(AttributeError):
            found[path] = getattr(importlib.import_module(module), name)
    return found


class AllowListUnpickler(pickle._Unpickler):
    """An unpickler that finds, calls, creates and changes nothing but what is in ``found``, by name.

    ``find_class`` alone would not do: the methods of what is found could be called, and its classes changed for the
    rest of the process. PyTorch's reader is as strict. It takes Python's own unpickler, as the one in C has no hooks.
    """

    found: ClassVar[dict[str, Any]] = {}

    def find_class(self, module: str, name: str) -> Any:
        path = _global_name(module, name)
        if path not in self.found:
            raise pickle.UnpicklingError(f'GLOBAL {path}')
        return self.found[path]

    def has_found(self, value: Any) -> bool:
        return any(value is one for one in self.found.values())


DICTS = (dict, OrderedDict, Counter)
# By opcode, whether it may run on what is on the stack; those with None never run.
GUARDS: dict[bytes, Callable[[Any], bool] | None] = {
    pickle.REDUCE: lambda self: self.has_found(self.stack[-2]),
    pickle.NEWOBJ: lambda self: self.has_found(self.stack[-2]),
    pickle.BUILD: lambda self: self.has_found(type(self.stack[-2])),
    pickle.APPEND: lambda self: type(self.stack[-2]) is list,
    pickle.APPENDS: lambda self: type(self.metastack[-1][-1]) is list,
    pickle.ADDITEMS: lambda self: type(self.metastack[-1][-1]) is set,
    pickle.SETITEM: lambda self: type(self.stack[-3]) in DICTS,
    pickle.SETITEMS: lambda self: type(self.metastack[-1][-1]) in DICTS,
    pickle.BINPERSID: lambda self: type(self.stack[-1]) is tuple and self.stack[-1][0] == 'storage',
    **dict.fromkeys((pickle.PERSID, pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX)),
    **dict.fromkeys((pickle.EXT1, pickle.EXT2, pickle.EXT4)),
}


def _guarded(code: int) -> Callable[[Any], None]:
    run, is_allowed = pickle._Unpickler.dispatch.get(code), GUARDS.get(bytes([code]), lambda self: True)

    def guarded(self: Any) -> None:
        if run is None or is_allowed is None or not is_allowed(self):
            raise pickle.UnpicklingError(f'opcode {code} does what no checkpoint needs')
        run(self)

    return guarded


AllowListUnpickler.dispatch = {code: _guarded(code) for code in range(256)}


def foreign_globals(path: str, allowed: Collection[str]) -> list[str]:
    """Returns what the pickle in a checkpoint asks for and :func:`load` does not find, running nothing of it."""
    known, foreign = {*_torch_globals(), *allowed}, {}

    class StandIn(dict):  # for whatever is asked for; does nothing
        def __init__(self, *_: Any):
            super().__init__()

        def __getattr__(self, _: str) -> type:
            return StandIn

        def __hash__(self) -> int:  # type: ignore[override]
            return id(self)

    class Listing(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> type:
            asked = _global_name(module, name)
            if asked not in known and not (module.startswith('torch') and name.endswith('Storage')):
                foreign[asked] = None
            return StandIn

        def persistent_load(self, _: Any) -> None:
            return None

    # After the last pickle, or where there is none, anything fails.
    with contextlib.suppress(Exception), open(path, 'rb') as file:
        stream: IO[bytes] = file
        if zipfile.is_zipfile(file):
            archive = zipfile.ZipFile(file)
            stream = archive.open(next(name for name in archive.namelist() if name.endswith('data.pkl')))
        stream.seek(0)
        for _ in range(5):  # before they were zip archives, files had five pickles in a row
            Listing(stream).load()
    return list(foreign)


def _global_name(module: str, name: str) -> str:
    return f'{"builtins" if module == "__builtin__" else module}.{name}'  # the name in Python 2 and protocol 2
