"""Detecting damaged checkpoints by their size and digest.

PyTorch does not check the checksums in a checkpoint: a flipped bit becomes another weight. A signed checkpoint has its
size and SHA-256 in the comment of its zip archive, which every other reader ignores. Of one that is not signed, the
CRC-32 of each member is checked. Neither says who wrote a file.
"""

import hashlib
import os
import re
import zipfile
from collections.abc import Iterable
from typing import BinaryIO

from pvt_mm.utils.errors import CheckpointError

_COMMENT = 'pvt_mm size={:020} sha256={}'
_SIGNATURE = re.compile(rb'pvt_mm size=([0-9]{20}) sha256=([0-9a-f]{64})')
_LENGTH = len(_COMMENT.format(0, 64 * '0'))
# How a zip archive begins, and the record of 22 bytes at its end; the last two are the length of the comment after it.
_HEAD, _END, _END_SIZE, _LONGEST_COMMENT = b'PK\3\4', b'PK\5\6', 22, 65535
_CHUNK = 2**20

_intact: set[tuple[str | int, ...]] = set()  # the files that verify_once knows


def sign(path: str | os.PathLike) -> None:
    """Appends the size and SHA-256 of a file written by ``torch.save`` to it, for :func:`verify`.

    Raises:
        ValueError: It is not a zip archive, or already has a comment, such as a signature.
        OSError: It cannot be read or written.
    """
    with open(path, 'r+b') as file:
        size = file.seek(0, os.SEEK_END)
        end = _tail(file, size, _END_SIZE)
        if not end.startswith(_END) or end[-2:] != b'\0\0':
            raise ValueError(f'{os.fspath(path)} is not a zip archive without a comment')
        comment = _COMMENT.format(size, _sha256(file, size)).encode()
        file.seek(size - 2)
        file.write(len(comment).to_bytes(2, 'little') + comment)


def verify(path: str | os.PathLike) -> None:
    """Checks that a checkpoint is as it was written, reading all of it. Files that are no zip archives are not checked.

    Raises:
        CheckpointError: It is truncated or changed.
        OSError: It cannot be read.
    """
    if fault := damage(path):
        raise CheckpointError(
            f'{os.fspath(path)} is damaged: {fault}; copy or download it again, or use another checkpoint'
        )


def damage(path: str | os.PathLike) -> str | None:
    """Returns what :func:`verify` finds wrong with a checkpoint, None where nothing is."""
    with open(path, 'rb') as file:
        return _damage(file, file.seek(0, os.SEEK_END))


def verify_once(path: str | os.PathLike) -> None:
    """Runs :func:`verify` once in a process for each file, unless the file changes."""
    file = os.fspath(path), *identity(path)
    if file not in _intact:
        verify(path)
        _intact.add(file)


def identity(path: str | os.PathLike) -> tuple[int, int, int]:
    """Returns what tells a file and its content from others, on all machines that share its disk."""
    state = os.stat(path)
    return state.st_ino, state.st_size, state.st_mtime_ns


def assume_intact(path: str | os.PathLike, verified: Iterable[int]) -> None:
    """Makes :func:`verify_once` skip a file that another process has verified, where its identity is the same here."""
    if identity(path) == tuple(verified):
        _intact.add((os.fspath(path), *identity(path)))


def _damage(file: BinaryIO, size: int) -> str | None:
    """Returns what is wrong with a checkpoint of ``size`` bytes, None where nothing is."""
    tail = _tail(file, size, _END_SIZE + _LENGTH)
    signature = _SIGNATURE.fullmatch(tail[-_LENGTH:])
    if not signature:
        file.seek(0)
        return _damage_of_archive(file, size) if file.read(4) == _HEAD else None
    signed, written, comment_length = size - _LENGTH, int(signature[1]), tail[-_LENGTH - 2 : -_LENGTH]
    if signed != written:
        return f'it has {signed} bytes, and {written} were written'
    if int.from_bytes(comment_length, 'little') != _LENGTH or _sha256(file, signed) != signature[2].decode():
        return 'it was changed after it was written (its SHA-256 differs)'
    return None


def _damage_of_archive(file: BinaryIO, size: int) -> str | None:
    """Returns what is wrong with a zip archive that has no signature of ours, None where nothing is."""
    tail = _tail(file, size, _END_SIZE + _LONGEST_COMMENT)
    at = tail.rfind(_END, 0, len(_END) + len(tail) - _END_SIZE)  # the last complete one
    comment, length = tail[at + _END_SIZE :], int.from_bytes(tail[at + _END_SIZE - 2 : at + _END_SIZE], 'little')
    if at < 0 or len(comment) < length:
        return 'it is truncated'
    if len(comment) == _LENGTH:
        return 'its signature has been changed'
    try:
        with zipfile.ZipFile(file) as archive:
            # Without set_crc32_options, PyTorch writes 0 for each.
            for member in (one for one in archive.infolist() if one.CRC):
                with archive.open(member) as content:
                    while content.read(_CHUNK):
                        pass
    except Exception as error:  # damaged archives raise anything
        return ' '.join(str(error).split()) or type(error).__name__
    return None


def _sha256(file: BinaryIO, size: int) -> str:
    """Returns the digest of the first ``size`` bytes, with the length of the comment set to 0."""
    digest, left = hashlib.sha256(), size - 2
    file.seek(0)
    while left:
        chunk = file.read(min(_CHUNK, left))
        if not chunk:
            raise OSError(f'the file ends {left} bytes before it should')
        digest.update(chunk)
        left -= len(chunk)
    digest.update(b'\0\0')
    return digest.hexdigest()


def _tail(file: BinaryIO, size: int, count: int) -> bytes:
    file.seek(max(0, size - count))
    return file.read(count)
