"""Configs that are installed with the package, in ``pvt_mm/.mim``, for users without a clone."""

import os
from pathlib import Path

MIM = Path(__file__).resolve().parents[1] / '.mim'


def find_config(path: str | os.PathLike) -> str:
    """Returns a path, or if there is no such file that of the installed config of this name.

    The name is relative to the project, such as ``configs/retinanet/pvt_s_1x.py``.
    """
    installed = MIM / path
    return str(installed) if not os.path.exists(path) and installed.is_file() else os.fspath(path)
