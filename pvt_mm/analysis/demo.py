"""Predictions on the images of a folder and on the frames of a video, drawn on copies of them."""

import errno
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track

from pvt_mm.analysis.drawing import draw
from pvt_mm.analysis.predictor import IMAGES, Predictor
from pvt_mm.datasets.image_io import EXTENSIONS
from pvt_mm.utils.errors import InputError
from pvt_mm.utils.files import atomic_write

VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v')


def find_inputs(what: str, out: Path) -> list[Path]:
    """Lists the images of a folder and its subfolders except ``out``; a file is listed alone.

    Raises:
        InputError: There is none, or ``out`` is the folder of the images.
    """
    path = Path(what)
    if not path.exists():
        raise InputError(f'{path} does not exist: name an image, a video or a folder of images')
    if out.exists() and not out.is_dir():
        raise InputError(f'--out {out} is a file: name a folder')
    folder = path if path.is_dir() else path.parent
    if out.resolve() == folder.resolve():
        raise InputError(f'--out {out} is the folder of the images, which would be overwritten: name another')
    if path.is_file():
        return [path]
    images = (one for one in sorted(path.rglob('*')) if one.suffix.lower() in EXTENSIONS and one.is_file())
    found = [one for one in images if out.resolve() not in one.resolve().parents]
    if not found:
        raise InputError(f'{path} has no image: no file ends in {", ".join(EXTENSIONS)}')
    return found


def run_images(
    predictor: Predictor, paths: list[Path], root: Path, out: Path
) -> Iterator[tuple[str, list[dict] | None, str]]:
    """Writes images with predictions drawn on them to a folder, under their names relative to ``root``.

    Yields each name with its predictions; or with None and the reason in one line, if the image was skipped.

    Raises:
        OSError: The disk is full or read-only.
    """
    bar = dict(console=Console(stderr=True), transient=True, disable=len(paths) == 1)
    for path in track(paths, 'predicting', **bar):
        name = path.relative_to(root).as_posix()
        suffix = path.suffix.lower() if path.suffix.lower() in IMAGES else '.jpg'
        try:
            result = predictor(path)
            result.save(out / (name if path.suffix.lower() == suffix else name + suffix))
        except Exception as error:  # one image must not lose the others
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise
            reason = _reason(error)
            yield name, None, reason if str(path) in reason else f'{path}: {reason}'
        else:
            yield name, result.objects, ''


def _reason(error: Exception) -> str:
    reason = str(error) if isinstance(error, InputError) else f'{type(error).__name__}: {error}'
    return ' '.join(reason.split())


def run_video(predictor: Predictor, path: Path, out: Path) -> tuple[list[list[dict] | None], list[str]]:
    """Writes a video with predictions drawn on it to a folder, under its name, as MPEG-4.

    Returns the predictions of each frame, or None for those that are drawn without, and the reasons for these.

    Raises:
        InputError: The video cannot be read, or none of its frames can be predicted on.
    """
    reader = cv2.VideoCapture(str(path))
    count, fps = int(reader.get(cv2.CAP_PROP_FRAME_COUNT)), reader.get(cv2.CAP_PROP_FPS) or 25.0
    found: list[list[dict] | None] = []
    skipped, writer = [], None
    with atomic_write(out / f'{path.stem}.mp4') as temporary:
        part = temporary.with_suffix('.mp4')  # OpenCV chooses the format by the suffix
        try:
            for frame in track(_frames(reader), 'predicting', count, console=Console(stderr=True), transient=True):
                try:
                    result = predictor(frame)
                    objects, drawn = result.objects, result.draw()
                except Exception as error:  # one frame must not lose the others
                    objects, drawn = None, draw(frame, [], {})
                    skipped.append(f'{path}, frame {len(found) + 1}: {_reason(error)}')
                if writer is None:
                    size = (drawn.shape[1], drawn.shape[0])
                    writer = cv2.VideoWriter(str(part), cv2.VideoWriter_fourcc(*'mp4v'), fps, size)
                writer.write(drawn)
                found.append(objects)
            if writer is None:
                raise InputError(f'{path} is truncated or not a video')
            if len(skipped) == len(found):
                raise InputError(f'no frame could be drawn; the first: {skipped[0]}')
            writer.release()
            part.replace(temporary)
        finally:
            part.unlink(missing_ok=True)
            reader.release()
    return found, skipped


def _frames(reader: cv2.VideoCapture) -> Iterator[np.ndarray]:
    while (frame := reader.read()[1]) is not None:
        yield frame
