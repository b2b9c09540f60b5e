"""Reading a pickle that finds, calls and changes nothing but what is on a list: that of what checkpoints hold.

PyTorch's ``weights_only=True`` can be given such a list from 2.6 on. But a file can change what was found in any way
that its ``__setstate__`` has, and the list holds for all threads. :class:`AllowListUnpickler` is for every version.
"""

import argparse
import contextlib
import functools
import importlib
import os
import pickle
import re
import tarfile
import types
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from types import SimpleNamespace
from typing import IO, Any, ClassVar

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim import OneCycleParamScheduler

FORCED = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
# What PyTorch writes for tensors, as far as this version has it; torch.load finds the types of storages on its own.
# Not `torch._tensor._rebuild_from_type_v2`, which calls whatever it is given: tensors with attributes are refused.
TORCH_NAMES = (
    *(f'torch._utils._rebuild_{kind}' for kind in ('tensor', 'tensor_v2', 'tensor_v3', 'sparse_tensor', 'qtensor')),
    *(f'torch._utils._rebuild_{kind}' for kind in ('parameter', 'parameter_with_state', 'meta_tensor_no_storage')),
    *('torch.Size', 'torch.device', 'torch.serialization._get_layout', 'torch.storage.UntypedStorage'),
    *('torch.per_tensor_affine', 'collections.OrderedDict', 'collections.Counter', '_codecs.encode'),
    *('builtins.bytearray', 'builtins.complex', 'builtins.set'),
)


def allowed_globals() -> dict[str, Any]:
    """Returns by name what checkpoints hold next to tensors, and which runs no code.

    MMEngine's hold the history of the logged values, the state of schedulers, NumPy's scalars and random states; the
    authors' training its command line. NumPy 2 writes ``numpy._core`` where NumPy 1 wrote ``numpy.core``; whichever is
    installed, both names are found.
    """
    arrays = {name: _empty_array if 'reconstruct' in name else value for name, value in _numpy_functions().items()}
    owners = (bytes, argparse.Namespace, HistoryBuffer, OneCycleParamScheduler, np.ndarray)
    classes = {f'{owner.__module__}.{owner.__qualname__}': owner for owner in owners}
    return {**classes, **arrays, 'numpy.dtype': _numeric_dtype, 'builtins.getattr': _attribute_of_mmengine}


def _numpy_functions() -> dict[str, Any]:
    found = {'_reconstruct': np.empty(0).__reduce__()[0], 'scalar': np.float64(0).__reduce__()[0]}
    return {
        f'numpy.{core}.multiarray.{name}': function for name, function in found.items() for core in ('core', '_core')
    }


def _empty_array(*_: Any) -> np.ndarray:
    return np.empty(0)  # its state follows


def _numeric_dtype(kind: Any, *_: Any) -> np.dtype:
    """Only types of numbers: in an array of objects, the bytes of a file would be taken for addresses."""
    if type(kind) is not str or not re.fullmatch(r'[biufc][0-9]{1,2}', kind):
        raise pickle.UnpicklingError('GLOBAL numpy.dtype')
    return np.dtype(kind, copy=True)  # not the one shared by all


def _attribute_of_mmengine(owner: Any, name: str) -> Any:
    """The uses that MMEngine's checkpoints have for ``getattr``, which reaches everything if left alone.

    They are the methods of HistoryBuffer for statistics, of which a resumed one has its own, and functions of numbers.
    """
    if owner is HistoryBuffer and not name.startswith('_'):
        return None
    if owner is OneCycleParamScheduler and name in ('_annealing_cos', '_annealing_linear'):
        return getattr(owner, name)
    raise pickle.UnpicklingError('GLOBAL builtins.getattr')


def load(path: str, map_location: str, allowed: dict[str, Any]) -> Any:
    """Returns the content of a file of ``torch.save`` that asks for what PyTorch writes and ``allowed``, and no more.

    Where the user has set TORCH_FORCE_WEIGHTS_ONLY_LOAD, PyTorch's own reader takes it, without ``allowed``.

    Raises:
        pickle.UnpicklingError: It asks for more, or is damaged. More is named as ``GLOBAL module.name``.
        RuntimeError: It is a TorchScript archive, was written by PyTorch 0.1.9, or needs that variable to be unset.
        Exception: It is damaged, or not a checkpoint, which raises anything.
    """
    _check_format(path)
    if _is_forced():
        try:
            return torch.load(path, map_location=map_location, weights_only=True)
        except pickle.UnpicklingError as error:
            if foreign_globals(path, allowed):
                raise
            raise RuntimeError(f'PyTorch refuses more than weights, as {FORCED} is set; unset it') from error

    class Unpickler(AllowListUnpickler):
        found: ClassVar = {**_torch_globals(), **allowed}

    return torch.load(path, map_location, _pickle_module(Unpickler), weights_only=False)


def _check_format(path: str) -> None:
    """Refuses what torch.load would read without the unpickler: TorchScript, and the files of PyTorch 0.1.9."""
    with open(path, 'rb') as file:
        is_zip = file.read(4) == b'PK\3\4'  # as torch.load tells
    if is_zip:
        # PyTorch's own reader, where there is one, as another could be shown other records.
        reader = getattr(torch._C, 'PyTorchFileReader', None)
        records = reader(path).get_all_records() if reader else zipfile.ZipFile(path).namelist()
        if any(name.endswith('constants.pkl') for name in records):
            raise RuntimeError('it is a TorchScript archive')
        return
    try:
        tarfile.open(path, 'r:').close()
    except tarfile.TarError:
        return
    raise RuntimeError('it was written by PyTorch 0.1.9')


def _is_forced() -> bool:
    return os.getenv(FORCED, '0').lower() in ('1', 'y', 'yes', 'true')  # as PyTorch reads it


def load_trusted(path: str, map_location: str) -> Any:
    """Returns the content of a file of ``torch.save``, running what it asks for. It has the names of either NumPy.

    Raises:
        RuntimeError: TORCH_FORCE_WEIGHTS_ONLY_LOAD is set, which forbids that.
        Exception: It runs anything.
    """
    if _is_forced():
        raise RuntimeError(f'{FORCED} is set, which forbids --trust; unset it')
    functions = _numpy_functions()

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            return functions.get(f'{module}.{name}') or super().find_class(module, name)

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
    rest of the process. It takes Python's own unpickler, as the one in C has no hooks.
    """

    found: ClassVar[dict[str, Any]] = {}

    def find_class(self, module: str, name: str) -> Any:
        path = _global_name(module, name)
        if path not in self.found:
            raise pickle.UnpicklingError(f'GLOBAL {path}')
        return self.found[path]

    def may_call(self, value: Any) -> bool:
        """Whether it was found, and is a function or a class of plain values; not, say, a method of one."""
        is_callable = isinstance(value, types.FunctionType | types.BuiltinFunctionType) or _is_one(value, CALLED)
        return is_callable and _is_one(value, self.found.values())


def _is_one(value: Any, of: Collection[Any]) -> bool:
    return any(value is one for one in of)  # by identity: to compare would ask the value


def _set_attributes(target: Any, state: Any) -> None:
    # Python and NumPy ask objects for names with two underscores, such as `__array_interface__`, a memory address.
    if type(state) is not dict or any(type(name) is not str or name.startswith('__') for name in state):
        raise pickle.UnpicklingError('no attributes')
    vars(target).update(state)


def _set_history(target: HistoryBuffer, state: Any) -> None:
    """Without the methods in it, which MMEngine would register for the whole process, or which hide those there."""
    if type(state) is not dict:
        raise pickle.UnpicklingError('no history')
    target.__setstate__({name: value for name, value in state.items() if type(value) in (np.ndarray, int)})


def _set_array(target: np.ndarray, state: Any) -> None:
    target.__setstate__(state)  # NumPy checks that it is a dtype, which is one of numbers, and that many bytes


def _set_byte_order(target: Any, state: Any) -> None:
    """Nothing else: not its flags, nor fields."""
    if type(state) is not tuple or [type(value) for value in state] != [type(value) for value in DTYPE_STATE]:
        raise pickle.UnpicklingError('GLOBAL numpy.dtype')
    if state[1] not in ('<', '>', '|', '=') or (state[0], *state[2:]) != (DTYPE_STATE[0], *DTYPE_STATE[2:]):
        raise pickle.UnpicklingError('GLOBAL numpy.dtype')
    target.__setstate__(state)


DTYPE_STATE = (3, '<', None, None, None, -1, -1, 0)
DICTS = (dict, OrderedDict, Counter)
CALLED = (OrderedDict, Counter, set, bytes, bytearray, complex, torch.Size, torch.device)
CREATED = (argparse.Namespace, HistoryBuffer)  # empty, before they get their state
SETTERS: dict[type, Callable[[Any, Any], None]] = {
    argparse.Namespace: _set_attributes,
    OrderedDict: _set_attributes,
    HistoryBuffer: _set_history,
    np.ndarray: _set_array,
    np.dtype: _set_byte_order,
}
# By opcode, whether it may run on what is on the stack; those with None never run.
GUARDS: dict[bytes, Callable[[Any], bool] | None] = {
    pickle.REDUCE: lambda self: self.may_call(self.stack[-2]),
    pickle.NEWOBJ: lambda self: _is_one(self.stack[-2], CREATED) and self.stack[-1] == (),
    pickle.BUILD: lambda self: _setter(self.stack[-2]) is not None,
    pickle.APPEND: lambda self: type(self.stack[-2]) is list,
    pickle.APPENDS: lambda self: type(self.metastack[-1][-1]) is list,
    pickle.ADDITEMS: lambda self: type(self.metastack[-1][-1]) is set,
    pickle.SETITEM: lambda self: type(self.stack[-3]) in DICTS,
    pickle.SETITEMS: lambda self: type(self.metastack[-1][-1]) in DICTS,
    pickle.BINPERSID: lambda self: type(self.stack[-1]) is tuple and self.stack[-1][0] == 'storage',
    **dict.fromkeys((pickle.PERSID, pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX)),
    **dict.fromkeys((pickle.EXT1, pickle.EXT2, pickle.EXT4)),
}


def _setter(target: Any) -> Callable[[Any, Any], None] | None:
    return SETTERS.get(np.dtype if isinstance(target, np.dtype) else type(target))


def _build(self: Any) -> None:
    state, target = self.stack.pop(), self.stack[-1]
    _setter(target)(target, state)  # type: ignore[misc]


RUN = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: _build}


def _guarded(code: int) -> Callable[[Any], None]:
    run, is_allowed = RUN.get(code), GUARDS.get(bytes([code]), lambda self: True)

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
