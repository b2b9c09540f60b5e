"""Predictions on the frames of a video, drawn on copies of them; :mod:`pvt_mm.serving.folders` has those on images."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from pvt_mm.analysis.predictor import Predictor
from pvt_mm.serving.folders import reason_of, show_progress
from pvt_mm.serving.result import Result
from pvt_mm.utils.errors import InputError
from pvt_mm.utils.files import atomic_write

VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v')


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
            for frame in _frames(reader):
                show_progress(len(found) + 1, count)
                try:
                    result = predictor(frame)
                    objects, drawn = result.objects, result.draw()
                except Exception as error:  # one frame must not lose the others
                    objects, drawn = None, Result([], frame, {}, 'BGR').draw()
                    skipped.append(f'{path}, frame {len(found) + 1}: {reason_of(error)}')
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
            show_progress()
            part.unlink(missing_ok=True)
            reader.release()
    return found, skipped


def _frames(reader: cv2.VideoCapture) -> Iterator[np.ndarray]:
    while (frame := reader.read()[1]) is not None:
        yield frame
