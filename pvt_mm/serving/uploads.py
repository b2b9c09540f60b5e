"""Images in the bodies of HTTP requests: read within limits, and refused with a status that says why."""

import io
from collections.abc import AsyncIterator

from PIL import Image

from pvt_mm.utils.errors import InputError

FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'PPM', 'TIFF', 'WEBP')  # not those for which Pillow starts a program


class RefusedError(InputError):
    """A request is refused, with a ``status`` of HTTP and perhaps headers."""

    def __init__(self, status: int, reason: str, **headers: str):
        super().__init__(reason)
        self.status, self.headers = status, headers


async def drain(parts: AsyncIterator[bytes]) -> None:
    """Reads a body and drops it, since most clients look for an answer after they have sent everything."""
    async for _ in parts:
        pass


async def read_body(parts: AsyncIterator[bytes], max_mb: float) -> bytes:
    """Returns the parts of a body, all of which are read, and no more than ``max_mb`` kept.

    Raises:
        RefusedError: The body is empty (400) or larger (413).
    """
    body, size = bytearray(), 0
    async for part in parts:
        size += len(part)
        body += part if size <= max_mb * 1e6 else b''
    if size > max_mb * 1e6:
        raise RefusedError(413, f'the body is larger than {max_mb:g} MB: send a smaller image')
    if not body:
        raise RefusedError(400, 'the body is empty: send the bytes of an image file')
    return bytes(body)


def open_image(body: bytes, max_mpixels: float) -> io.BytesIO:
    """Returns the file of an image whose header says that it has at most ``max_mpixels`` million pixels.

    Raises:
        RefusedError: It is not an image (415) or has more pixels (413).
    """
    try:
        with Image.open(io.BytesIO(body), formats=FORMATS) as image:  # reads no more than the header
            width, height = image.size
    except Exception:  # decoders raise anything
        how = 'send the bytes of the file alone: curl --data-binary @FILE, not -F or -d'
        raise RefusedError(415, f'the body is not one of {", ".join(FORMATS)}: {how}') from None
    if width * height > max_mpixels * 1e6:
        raise RefusedError(413, f'{width} x {height} is more than {max_mpixels:g} million pixels: send fewer')
    return io.BytesIO(body)
