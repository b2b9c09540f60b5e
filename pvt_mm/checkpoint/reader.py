"""Safe reading of checkpoints: from files and URLs, executing nothing in them, and refusing what is damaged."""

import argparse
import contextlib
import functools
import hashlib
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import IO, Any
from unittest import mock
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine import fileio
from mmengine.dist import barrier
from mmengine.logging import HistoryBuffer, print_log
from mmengine.optim import OneCycleParamScheduler
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import get_external_models, get_torchvision_models
from torch import Tensor

from pvt_mm.checkpoint.integrity import verify_once
from pvt_mm.checkpoint.writer import import_safetensors
from pvt_mm.utils.errors import CheckpointError
from pvt_mm.utils.text import shorten

WRAPPERS = ('state_dict', 'model', 'ema_state_dict', 'state_dict_ema', 'model_ema', 'module')
# The schemes that MMEngine has readers for. All of these fall back to running what is in the file.
SCHEMES = ('', 'http://', 'https://', 'torchvision://', 'modelzoo://', 'open-mmlab://', 'openmmlab://', 'mmcls://')
SCHEMES += ('pavi://', r'(\S+\:)?s3://', r'(\S+\:)?petrel://')

_trust: ContextVar[bool] = ContextVar('trust', default=False)


@contextlib.contextmanager
def safe_reading(trust: bool = False) -> Iterator[None]:
    """Makes MMEngine read checkpoints as :func:`read_file` does, within the block.

    With ``trust``, all functions of this module read a checkpoint that is refused all the same, running what it asks.
    """
    token = _trust.set(trust)
    try:
        with mock.patch.dict(getattr(CheckpointLoader, '_schemes', {})):  # restored at the end
            CheckpointLoader.register_scheme(SCHEMES, _load_for_mmengine, force=True)
            yield
    finally:
        _trust.reset(token)


def _load_for_mmengine(path: str, map_location: str | None = None) -> Any:
    """Reads a checkpoint for MMEngine, without the config text that Runner.resume would run as Python."""
    content = read_file(path, map_location or 'cpu')
    if isinstance(content, dict) and isinstance(content.get('meta'), dict):
        content['meta'].pop('config', None)
    return content


def read_checkpoint(path: str | os.PathLike, map_location: str = 'cpu') -> dict[str, Tensor]:
    """Returns the parameters in a file or at a URL, without the wrappers of the tool that wrote it.

    Raises:
        CheckpointError: See :func:`read_file`; or the file holds no parameters.
    """
    return _parameters(read_file(path, map_location), str(path))


def read_file(path: str | os.PathLike, map_location: str = 'cpu') -> Any:
    """Returns the content of a file or URL, with its parameters under ``state_dict``, as MMEngine's checkpoints.

    Nothing in the file is executed: pickles are read with ``weights_only=True``, allowing what MMEngine and the
    authors' training write next to the weights; or the file is in safetensors format. :func:`safe_reading` can lift
    that. A damaged file is refused (:mod:`pvt_mm.checkpoint.integrity`). Downloads are kept in torch.hub's cache.

    Raises:
        CheckpointError: The file does not exist, cannot be read, is damaged, or is refused.
    """
    path = str(path)
    where = _in_catalog(path)
    with contextlib.ExitStack() as stack:
        if urlparse(where).scheme in ('http', 'https'):
            where = _download(where)
        elif '://' in where:
            try:
                where = stack.enter_context(fileio.get_local_path(where))
            except Exception as error:  # each storage has exceptions of its own
                raise CheckpointError(
                    f'{path} cannot be fetched: {type(error).__name__}: {_one_line(error)}'
                ) from error
        content = _read_local(where, map_location)
    if isinstance(content, Mapping) and 'state_dict' not in content and set(WRAPPERS) & set(content):
        content = {**content, 'state_dict': _parameters(content, path)}
    return content


def _read_local(path: str, map_location: str) -> Any:
    if not os.path.isfile(path):
        what = 'is a folder, not a checkpoint' if os.path.isdir(path) else 'does not exist'
        raise CheckpointError(f'{path} {what}')
    if path.endswith('.safetensors'):
        safetensors = import_safetensors()
        try:
            return safetensors.load_file(path, device=map_location)
        except Exception as error:  # safetensors has an exception type of its own in each version
            raise CheckpointError(f'{path} cannot be read as safetensors: {_one_line(error)}') from None
    try:
        verify_once(path)
    except OSError as error:
        raise CheckpointError(f'{path} cannot be read: {error.strerror or error}') from None
    try:
        with torch.serialization.safe_globals(_allowed_globals()):
            return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r'GLOBAL ([\w.]+)', str(error))
        asked = [found[1]] if found else _globals_of(path)
    except Exception as error:
        if isinstance(error, RuntimeError) or not zipfile.is_zipfile(path):  # bytes that are no pickle raise anything
            raise CheckpointError(f'{path} is not a checkpoint, or is damaged: {_one_line(error)}') from None
        raise CheckpointError(f'{path} cannot be read: {type(error).__name__}: {_one_line(error)}') from error
    if not asked:
        raise CheckpointError(f'{path} is not a checkpoint, or is damaged')
    if not _trust.get():
        raise CheckpointError(
            f'{path} is refused: it asks to run {shorten(asked)}, which a file of weights does not need; use --trust '
            'if you trust its author'
        )
    _warn_of_trust(path, shorten(asked))
    try:
        return torch.load(path, map_location=map_location, weights_only=False)
    except Exception as error:  # it runs anything
        raise CheckpointError(f'{path} cannot be read: {type(error).__name__}: {_one_line(error)}') from error


@functools.lru_cache  # once a file
def _warn_of_trust(path: str, asked: str) -> None:
    message = f'{path} is read without the allow-list (--trust), and runs what it asks for: {asked}'
    print_log(message, logger='current', level=logging.WARNING)


class _StandIn(dict):
    """Replaces whatever a pickle asks for, and does nothing."""

    def __init__(self, *_: Any):
        super().__init__()


def _globals_of(path: str) -> list[str]:
    """Returns what the pickle in a checkpoint asks for, without running it; PyTorch names it only for protocol 2."""
    found = {}

    class Listing(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> type:
            found[f'{module}.{name}'] = None
            return _StandIn

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
    return list(found)


def _in_catalog(path: str) -> str:
    """Returns the URL of weights that MMEngine names, such as ``torchvision://resnet50``; else the path."""
    scheme, _, name = path.partition('://')
    catalogs = dict.fromkeys(('torchvision', 'modelzoo'), get_torchvision_models)
    catalogs |= dict.fromkeys(('open-mmlab', 'openmmlab'), get_external_models)
    try:
        return catalogs[scheme]()[name] if scheme in catalogs else path
    except ImportError:
        raise CheckpointError(f'{path} needs torchvision: pip install torchvision') from None
    except KeyError:
        raise CheckpointError(f'{path}: there are no weights of this name') from None


def cached_path(url: str) -> str:
    """Returns where a download is kept: under its name, after a digest of the whole URL, as many files share a name."""
    name = f'{hashlib.sha256(url.encode()).hexdigest()[:8]}-{os.path.basename(urlparse(url).path)}'
    return os.path.join(torch.hub.get_dir(), 'checkpoints', name)


def _download(url: str) -> str:
    """Downloads a file once a machine, on its first rank; the other ranks wait for it, also where it fails."""
    path = cached_path(url)
    reason = 'by the first rank of this machine'
    if int(os.environ.get('LOCAL_RANK', 0)) == 0 and not os.path.exists(path):
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            torch.hub.download_url_to_file(url, path)
            verify_once(path)
        except Exception as error:  # whatever it is, the other ranks are waiting
            with contextlib.suppress(OSError):
                os.remove(path)
            reason = _one_line(error)
    barrier()
    if not os.path.exists(path):
        raise CheckpointError(
            f'{url} cannot be downloaded ({reason}): download it elsewhere and put it at {path}, or set another file '
            'with --cfg-options model.backbone.init_cfg.checkpoint=PATH, or train from random weights with '
            '--cfg-options model.backbone.init_cfg=None'
        )
    return path


def _parameters(content: Any, path: str) -> dict[str, Tensor]:
    inner = content
    while isinstance(inner, Mapping):
        content = inner
        inner = next((content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
    if not isinstance(content, Mapping):
        raise CheckpointError(f'{path} holds a {type(content).__name__}, not parameters')
    parameters = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not parameters:
        raise CheckpointError(f'{path} holds no parameters; its entries are {shorten(content) or "none"}')
    return parameters


def _allowed_globals() -> list:
    """Returns what checkpoints hold next to tensors, and which runs no code.

    MMEngine's hold the history of the logged values, the state of schedulers, NumPy's scalars and random states; the
    authors' training its command line. NumPy 2 writes ``numpy._core`` where NumPy 1 wrote ``numpy.core``.
    """
    arrays = [
        (value.__reduce__()[0], f'numpy.{core}.multiarray.{name}')
        for name, value in {'_reconstruct': np.empty(0), 'scalar': np.float64(0)}.items()
        for core in ('core', '_core')
    ]
    dtypes = {type(np.dtype(kind)) for kind in ('float64', 'float32', 'int64', 'int32', 'uint32')}
    owners = [argparse.Namespace, HistoryBuffer, OneCycleParamScheduler]
    return [*owners, (_method_of_mmengine, 'builtins.getattr'), *arrays, np.ndarray, np.dtype, *dtypes]


def _method_of_mmengine(owner: Any, name: str) -> Any:
    """The uses that MMEngine's checkpoints have for ``getattr``, which reaches everything if left alone."""
    annealing = owner is OneCycleParamScheduler and name in ('_annealing_cos', '_annealing_linear')
    if not annealing and (owner is not HistoryBuffer or name.startswith('_')):
        raise pickle.UnpicklingError('GLOBAL builtins.getattr')
    return getattr(owner, name)


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).split())[:200] or type(error).__name__
