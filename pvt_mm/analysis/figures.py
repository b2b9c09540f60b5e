"""What every picture shares: its colours, and how it is saved."""

import os
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from pvt_mm.errors import InputError
from pvt_mm.files import whole_file

# The palette of Okabe and Ito, which the colour-blind tell apart; its yellow is for areas, too pale for a line.
OKABE_ITO = {
    'blue': '#0072B2',
    'vermilion': '#D55E00',
    'green': '#009E73',
    'orange': '#E69F00',
    'purple': '#CC79A7',
    'sky blue': '#56B4E9',
    'black': '#000000',
    'yellow': '#F0E442',
}
FORMATS = ('.png', '.svg', '.pdf', '.jpg')


def check_out(path: str | os.PathLike) -> None:
    """Raises an InputError if a picture cannot be written to ``path``: of another format, or a folder."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise InputError(f'--out {path}: name a file that ends in one of {", ".join(FORMATS)}')
    if path.is_dir():
        raise InputError(f'--out {path} is a folder')


def save_figure(figure: Figure, path: str | os.PathLike, dpi: int = 160) -> None:
    """Writes a figure in the format of the path's suffix, whole or not at all; the same figure is the same file.

    Raises:
        InputError: The file cannot be written.
    """
    kind = Path(path).suffix.lower().removeprefix('.')
    undated = {'svg': {'Date': None}, 'pdf': {'CreationDate': None}}.get(kind)
    try:
        with whole_file(path) as beside, matplotlib.rc_context({'svg.hashsalt': 'pvt_mm'}):
            figure.savefig(beside, format=kind, dpi=dpi, facecolor='white', metadata=undated)
    except OSError as error:
        raise InputError(f'{path} cannot be written: {error.strerror or error}') from None
