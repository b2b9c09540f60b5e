"""Atomic writing of checkpoints, with their size and digest."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pvt_mm.checkpoint.integrity import sign
from pvt_mm.utils.errors import CheckpointError
from pvt_mm.utils.files import atomic_write


def save(content: Any, path: str | os.PathLike) -> None:
    """Writes what ``torch.save`` can to a file, atomically and signed (:mod:`pvt_mm.checkpoint.integrity`).

    Raises:
        OSError: The file cannot be written.
        RuntimeError: PyTorch cannot write it, as on a full disk.
    """
    with atomic_write(path) as temporary:
        torch.save(content, temporary)
        sign(temporary)


def save_checkpoint(state_dict: Mapping[str, Tensor], path: str | os.PathLike) -> None:
    """Writes parameters to a ``.pth`` or ``.safetensors`` file, atomically.

    Raises:
        CheckpointError: The file cannot be written, or safetensors is not installed.
    """
    try:
        if Path(path).suffix != '.safetensors':
            save(dict(state_dict), path)
            return
        safetensors = import_safetensors()
        with atomic_write(path) as temporary:
            safetensors.save_file({name: value.contiguous() for name, value in state_dict.items()}, temporary)
    except OSError as error:
        raise CheckpointError(f'{path} cannot be written: {error.strerror or error}') from None


def import_safetensors() -> Any:
    """Returns ``safetensors.torch``, or raises a CheckpointError if it is not installed."""
    try:
        import safetensors.torch
    except ImportError:
        raise CheckpointError('reading and writing safetensors needs `pip install safetensors`') from None
    return safetensors.torch
