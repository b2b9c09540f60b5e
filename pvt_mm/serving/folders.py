"""Predictions on the images of a folder, drawn on copies of them and written as JSON."""

import errno
import sys
from collections.abc import Callable
from pathlib import Path

from pvt_mm.serving.images import EXTENSIONS
from pvt_mm.serving.result import SAVING, Result
from pvt_mm.utils.errors import InputError
from pvt_mm.utils.files import check_writable, write_json

Model = Callable[[Path], Result]
LASTING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)  # the next file would fail too


def find_inputs(what: str, out: Path | None = None) -> list[Path]:
    """Lists the images of a folder and its subfolders except ``out``; a file is listed alone.

    Raises:
        InputError: There is none, or ``out`` is the folder of the images.
    """
    path = Path(what)
    if not path.exists():
        raise InputError(f'{path} does not exist: name a file or a folder of images')
    if out is not None and out.exists() and not out.is_dir():
        raise InputError(f'--out {out} is a file: name a folder')
    folder = path if path.is_dir() else path.parent
    if out is not None and out.resolve() == folder.resolve():
        raise InputError(f'--out {out} is the folder of the images, which would be overwritten: name another')
    if path.is_file():
        return [path]
    images = (one for one in sorted(path.rglob('*')) if one.suffix.lower() in EXTENSIONS and one.is_file())
    found = [one for one in images if out is None or out.resolve() not in one.resolve().parents]
    if not found:
        raise InputError(f'{path} has no image: no file ends in {", ".join(EXTENSIONS)}')
    return found


def run_images(model: Model, paths: list[Path], what: str, out: Path, content: dict) -> dict:
    """Writes images with what a model predicts drawn on them to a folder, under their names relative to ``what``.

    ``predictions.json`` there gets ``content`` and the predictions by name, of those images too that were done before
    an error or Ctrl-C. Images that cannot be drawn are skipped, with the reason in one line on stderr.

    Args:
        model: It returns the predictions on an image.
        paths: The images, of :func:`find_inputs`.
        what: Their folder, or the only image.
        out: The folder to write to.
        content: More entries of ``predictions.json``.

    Returns:
        How many ``images`` were drawn, and how many ``skipped``.

    Raises:
        InputError: None could be drawn.
        OSError: ``out`` cannot be written, before any prediction, or no longer, such as on a full disk.
    """
    root = Path(what) if Path(what).is_dir() else Path(what).parent
    found: dict[str, list[dict]] = {}
    skipped = []
    check_writable(out / 'predictions.json')
    try:
        for i, path in enumerate(paths, 1):
            show_progress(i, len(paths))
            name = path.relative_to(root).as_posix()
            suffix = path.suffix.lower() if path.suffix.lower() in SAVING else '.jpg'
            try:
                result = model(path)
                result.save(out / (name if path.suffix.lower() == suffix else name + suffix))
            except Exception as error:  # one image must not lose the others
                if isinstance(error, OSError) and error.errno in LASTING:
                    raise
                reason = reason_of(error)
                skipped.append(reason if str(path) in reason else f'{path}: {reason}')
                report_skipped(skipped[-1:] if len(paths) > 1 else [])
            else:
                found[name] = result.objects
    finally:
        show_progress()
        if found:
            write_json(out / 'predictions.json', {**content, 'images': found})
    if not found:
        raise InputError(skipped[0] if len(skipped) == 1 else f'no image could be drawn; the first: {skipped[0]}')
    return {'images': len(found), 'skipped': len(skipped)}


def show_progress(step: int = 0, steps: int = 0) -> None:
    """Writes how many steps are done to stderr if that is a terminal and there are several, or clears its line."""
    if sys.stderr.isatty():
        sys.stderr.write(f'\r\x1b[Kpredicting {step} of {steps}' if steps > 1 else '\r\x1b[K')
        sys.stderr.flush()


def report_skipped(reasons: list[str]) -> None:
    """Writes why something was skipped to stderr, a line each."""
    if reasons:
        show_progress()
    sys.stderr.writelines(f'skipped: {reason}\n' for reason in reasons)


def reason_of(error: Exception) -> str:
    """Returns what an error says in one line."""
    reason = str(error) if isinstance(error, InputError) else f'{type(error).__name__}: {error}'
    return ' '.join(reason.split())
