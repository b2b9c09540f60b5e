"""Safe reading of checkpoints, from files, URLs and Hugging Face's Hub: runs nothing, and refuses what is damaged."""

import contextlib
import functools
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any
from unittest import mock
from urllib.parse import urlparse

from mmengine import fileio
from mmengine.dist import barrier, is_distributed
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import get_external_models, get_torchvision_models
from torch import Tensor

from pvt_mm.checkpoint.download import cached_path, fetch, find_by_name
from pvt_mm.checkpoint.integrity import verify_once
from pvt_mm.checkpoint.unpickling import allowed_globals, foreign_globals, load, load_trusted
from pvt_mm.checkpoint.writer import import_safetensors
from pvt_mm.utils.errors import CheckpointError
from pvt_mm.utils.text import shorten

WRAPPERS = ('state_dict', 'model', 'ema_state_dict', 'state_dict_ema', 'model_ema', 'module')
# The schemes that MMEngine has readers for. All of these fall back to running what is in the file.
SCHEMES = ('', 'http://', 'https://', 'torchvision://', 'modelzoo://', 'open-mmlab://', 'openmmlab://', 'mmcls://')
SCHEMES += ('hf://', 'pavi://', r'(\S+\:)?s3://', r'(\S+\:)?petrel://')

# The files of a repository of the Hugging Face Hub that have its weights, best first.
HUB_FILES = ('model.safetensors', 'pytorch_model.bin')

# What the errors of weights that init_cfg names say.
INIT_CFG_ADVICE = (
    'set another file with --cfg-options model.backbone.init_cfg.checkpoint=PATH, or start from random weights with '
    'model.backbone.init_cfg=None'
)

# The variables of torchrun, Slurm and Open MPI. MMDetection's tools set torchrun's to 0 where another one starts them.
LOCAL_RANKS = ('LOCAL_RANK', 'SLURM_LOCALID', 'OMPI_COMM_WORLD_LOCAL_RANK')

_trust: ContextVar[bool] = ContextVar('trust', default=False)


class DownloadError(CheckpointError):
    """A checkpoint cannot be downloaded."""


@contextlib.contextmanager
def download_advice(advice: str) -> Iterator[None]:
    """Adds what else to do, such as the setting that names the checkpoint, to a DownloadError in the block."""
    try:
        yield
    except DownloadError as error:
        raise CheckpointError(f'{error}, or {advice}') from None


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
    with download_advice(INIT_CFG_ADVICE):  # what load_from names has been read before
        content = read_file(path, map_location or 'cpu')
    if isinstance(content, dict) and isinstance(content.get('meta'), dict):
        content['meta'].pop('config', None)
    return content


def read_checkpoint(path: str | os.PathLike, map_location: str = 'cpu') -> dict[str, Tensor]:
    """Returns the parameters in a file or at a URL, without the wrappers of the tool that wrote it.

    Raises:
        CheckpointError: See :func:`read_file`; or the file holds no parameters.
    """
    return parameters_of(read_file(path, map_location), str(path))


def read_file(path: str | os.PathLike, map_location: str = 'cpu') -> Any:
    """Returns the content of a file or URL, with its parameters under ``state_dict``, as MMEngine's checkpoints.

    Nothing in the file is executed: pickles may ask only for what PyTorch, MMEngine and the authors' training write
    (:mod:`pvt_mm.checkpoint.unpickling`); or the file is in safetensors format. :func:`safe_reading` can lift
    that. A damaged file is refused (:mod:`pvt_mm.checkpoint.integrity`). Downloads are kept in torch.hub's cache, and
    those of ``hf://owner/name[/file][@revision]`` in that of huggingface_hub.

    Raises:
        CheckpointError: The file does not exist, cannot be read, is damaged, or is refused.
    """
    path = str(path)
    where = catalog_url(path)
    with contextlib.ExitStack() as stack:
        if urlparse(where).scheme in ('http', 'https'):
            where = _download(where)
        elif where.startswith('hf://'):
            where = hub_path(where)
        elif '://' in where:
            try:
                where = stack.enter_context(fileio.get_local_path(where))
            except Exception as error:  # each storage has exceptions of its own
                raise CheckpointError(
                    f'{path} cannot be fetched: {type(error).__name__}: {_one_line(error)}'
                ) from error
        content = _read_local(where, map_location)
    if isinstance(content, Mapping) and 'state_dict' not in content and set(WRAPPERS) & set(content):
        content = {**content, 'state_dict': parameters_of(content, path)}
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
    allowed = allowed_globals()
    try:
        return load(path, map_location, allowed)
    except pickle.UnpicklingError as error:
        asked = foreign_globals(path, allowed) or re.findall(r'GLOBAL ([\w.]+)', str(error))[:1]
    except Exception as error:  # bytes that are no pickle raise anything
        if 'PytorchStreamReader' in str(error) or not zipfile.is_zipfile(path):
            raise CheckpointError(f'{path} is not a checkpoint, or is damaged: {_one_line(error)}') from error
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
        return load_trusted(path, map_location)
    except Exception as error:  # it runs anything
        raise CheckpointError(f'{path} cannot be read: {type(error).__name__}: {_one_line(error)}') from error


@functools.lru_cache  # once a file
def _warn_of_trust(path: str, asked: str) -> None:
    message = f'{path} is read without the allow-list (--trust), and runs what it asks for: {asked}'
    print_log(message, logger='current', level=logging.WARNING)


def catalog_url(path: str) -> str:
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


def _download(url: str) -> str:
    """Downloads a file once a machine, on its first rank; the other ranks wait for it, also where it fails."""
    path = find_by_name(url) or cached_path(url)
    reason = 'by the first rank of this machine'
    if _is_first_of_machine() and not os.path.exists(path):
        try:
            print_log(f'downloading {url} to {path}', logger='current')
            fetch(url, path)
        except Exception as error:  # whatever it is, the other ranks are waiting
            reason = _one_line(error).removeprefix(f'{url} cannot be downloaded: ').removeprefix(f'{url}: ')
    barrier()
    if not os.path.exists(path):
        raise DownloadError(
            f'{url} cannot be downloaded ({reason}): run tools/download.py CONFIG where there is a network, for '
            f'example on a login node, or put the file at {path}'
        )
    return path


def hub_path(address: str) -> str:
    """Returns the path in huggingface_hub's cache of ``hf://owner/name[/file][@revision]``, downloaded once a machine.

    Raises:
        CheckpointError: It cannot be fetched, or huggingface_hub is not installed.
    """
    where, _, revision = address.removeprefix('hf://').partition('@')
    owner, name, file = [*where.split('/', 2), '', ''][:3]
    if not owner or not name:
        raise CheckpointError(f'{address}: write hf://owner/name, or hf://owner/name/file, with @revision if needed')
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils import EntryNotFoundError
    except ImportError:
        raise CheckpointError(f"{address} needs huggingface_hub: pip install 'pvt_mm[hf]'") from None

    def find(local_files_only: bool) -> str:
        files = [file] if file else list(HUB_FILES)
        for one in files:
            try:
                return hf_hub_download(
                    f'{owner}/{name}', one, revision=revision or None, local_files_only=local_files_only
                )
            except EntryNotFoundError as error:  # so is what is neither in the cache nor reached
                found = error
        raise found if len(files) == 1 else FileNotFoundError(f'neither {" nor ".join(files)} is there: {found}')

    reason = ''
    if _is_first_of_machine():
        try:
            find(local_files_only=False)
        except Exception as error:  # those of HTTP libraries, too; the other ranks are waiting
            reason = f'{type(error).__name__}: {_one_line(error)}'
    barrier()
    try:
        if reason:
            raise FileNotFoundError(reason)
        return find(local_files_only=True)
    except Exception as error:
        raise CheckpointError(
            f'{address} cannot be fetched ({_one_line(error)}): check the name and the network, or set a file'
        ) from None


def _is_first_of_machine() -> bool:
    """Returns whether this process downloads for its machine; so does each that could not wait for another."""
    return not is_distributed() or all(int(os.environ.get(name, 0)) == 0 for name in LOCAL_RANKS)


def parameters_of(content: Any, path: str) -> dict[str, Tensor]:
    """Returns the parameters in the content of a file, without the wrappers of the tool that wrote it.

    Raises:
        CheckpointError: It has none.
    """
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


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).split())[:200] or type(error).__name__
