"""Image files that are missing, cut off or no images."""

import os

from PIL import Image

# What an image file ends with, past which nothing but padding is expected.
ENDS = {'.jpg': b'\xff\xd9', '.jpeg': b'\xff\xd9', '.png': b'IEND\xaeB`\x82'}


def broken_file(info: dict, thorough: bool) -> str | None:
    """Returns what is wrong with the image or label map of a sample, in a line, or None.

    Decoders fill what a cut-off JPEG lacks with grey and go on, so it is its end that is looked at.

    Args:
        info: What the data set knows of the sample: ``img_path``, ``seg_map_path``.
        thorough: Whether to decode the files, where they end as they should, too.
    """
    for name in ('img_path', 'seg_map_path'):
        path = info.get(name)
        if not isinstance(path, str) or '://' in path:
            continue
        try:
            if thorough or not _ends_well(path):
                with Image.open(path) as image:
                    image.load()
        except FileNotFoundError:
            if thorough:  # else it may be the name of something that is in no file system
                return f'{path} does not exist'
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow's, of many formats
            return f'{path} is damaged ({" ".join(str(error).replace(path, "").split())})'
    return None


def _ends_well(path: str) -> bool:
    end = ENDS.get(os.path.splitext(path)[1].lower())
    if end is None:
        return True
    with open(path, 'rb') as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 64))
        return file.read().rstrip(b'\0\r\n ').endswith(end)
