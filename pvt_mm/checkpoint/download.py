"""Downloading checkpoints, atomically: what is truncated, damaged, changed, or no checkpoint, is not kept."""

import hashlib
import os
import re
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlparse
from urllib.request import Request, urlopen

import torch

from pvt_mm.checkpoint.integrity import damage
from pvt_mm.utils.errors import CheckpointError
from pvt_mm.utils.files import atomic_write

TIMEOUT = 60  # seconds without a byte
_CHUNK = 2**20
# Whose file names end in the first eight digits of their SHA-256.
_NAMES_WITH_DIGESTS = r'https?://download\.(?:openmmlab\.com|pytorch\.org)/.*-([0-9a-f]{8})\.\w+'


def file_name(url: str) -> str:
    """Returns the name of the file at a URL."""
    return os.path.basename(unquote(urlparse(url).path))


def cached_path(url: str) -> str:
    """Returns where a download is kept: under its name, after a digest of the whole URL, as many files share a name."""
    name = f'{hashlib.sha256(url.encode()).hexdigest()[:8]}-{os.path.basename(urlparse(url).path)}'
    return os.path.join(torch.hub.get_dir(), 'checkpoints', name)


def find_by_name(url: str) -> str | None:
    """Returns the file that torch.hub or MMEngine has downloaded from a URL, where its name says its digest."""
    path = os.path.join(torch.hub.get_dir(), 'checkpoints', file_name(url))
    if not published_digest(url) or not os.path.isfile(path):
        return None
    try:
        check_downloaded(url, path)
    except (CheckpointError, OSError):
        return None
    return path


def published_digest(url: str) -> str | None:
    """Returns what the SHA-256 of the file at a URL begins with, in hexadecimal, where its name says that."""
    found = re.fullmatch(_NAMES_WITH_DIGESTS, url)
    return found[1] if found else None


def fetch(url: str, path: str | os.PathLike, report: Callable[[int, int], None] | None = None) -> None:
    """Downloads a checkpoint to a file, which is complete and intact, or not there (or as it was).

    Args:
        url: Of ``http`` or ``https``.
        path: The file to write. Its folder is created.
        report: Is called with the bytes that have been received, and the size of the file in bytes or 0 if unknown.

    Raises:
        CheckpointError: The server cannot be reached, or has no such file; or what it sends is truncated, damaged, not
            a checkpoint, or has another SHA-256 than its name says.
        OSError: The file cannot be written.
    """
    request = Request(url, headers={'User-Agent': 'pvt_mm'})
    try:
        with urlopen(request, timeout=TIMEOUT) as response, atomic_write(path) as temporary:
            total, received, digest = int(response.headers.get('Content-Length') or 0), 0, hashlib.sha256()
            with open(temporary, 'wb') as file:
                while chunk := response.read(_CHUNK):
                    if not received:
                        _check_kind(chunk)
                    file.write(chunk)
                    digest.update(chunk)
                    received += len(chunk)
                    if report:
                        report(received, total)
            _check_content(temporary, received, total, digest.hexdigest(), published_digest(url))
    except CheckpointError as error:
        raise CheckpointError(f'{url}: {error}') from None
    except HTTPError as error:
        raise CheckpointError(f'{url} cannot be downloaded: the server answers {error.code} {error.reason}') from None
    except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
        reason = getattr(error, 'reason', None) or error
        text = getattr(reason, 'strerror', None) or ' '.join(str(reason).split()) or type(reason).__name__
        raise CheckpointError(f'{url} cannot be downloaded: {text}') from None


def check_downloaded(url: str, path: str | os.PathLike) -> None:
    """Checks a file that was downloaded from a URL before.

    Raises:
        CheckpointError: It is damaged, not a checkpoint, or has another SHA-256 than its name says.
    """
    content, digest = Path(path), hashlib.sha256()
    with content.open('rb') as file:
        _check_kind(file.read(16))
        file.seek(0)
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    size = content.stat().st_size
    _check_content(content, size, size, digest.hexdigest(), published_digest(url))


def _check_kind(head: bytes) -> None:
    if head.lstrip()[:1] == b'<':
        raise CheckpointError('this is a web page, not a checkpoint: download the file with a browser')
    # A zip archive or a pickle, by torch.save; or the header of safetensors, after its length.
    if head[:4] != b'PK\3\4' and head[:1] != b'\x80' and head[8:9] != b'{':
        raise CheckpointError('this is not a checkpoint')


def _check_content(path: Path, received: int, total: int, digest: str, wanted: str | None) -> None:
    if not received or (total and received != total):
        raise CheckpointError(f'{received} of {total} bytes arrived: try again')
    if wanted and not digest.startswith(wanted):
        raise CheckpointError(f'its SHA-256 begins with {digest[:8]}, not with {wanted} as its name says: try again')
    if fault := damage(path):
        raise CheckpointError(f'it is damaged ({fault}): try again')
