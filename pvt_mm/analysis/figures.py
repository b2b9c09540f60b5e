"""What every picture shares: its colours, and how it is saved."""

import os
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

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
STYLE = {
    'axes.edgecolor': '0.4',
    'axes.spines.right': False,
    'axes.spines.top': False,
    'axes.titlelocation': 'left',
    'axes.titlepad': 10,
    'axes.titlesize': 13,
    'axes.titleweight': 'bold',
    'axes.labelsize': 11,
    'axes.labelcolor': '0.25',
    'font.size': 10,
    'xtick.color': '0.4',
    'ytick.color': '0.4',
}
FORMATS = ('.png', '.svg', '.pdf', '.jpg')


def check_out(path: str | os.PathLike, flag: str = '--out') -> None:
    """Raises an InputError if ``path``, given by ``flag``, can be no picture: another format, or a folder."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise InputError(f'{flag} {path}: name a file that ends in one of {", ".join(FORMATS)}')
    if path.is_dir():
        raise InputError(f'{flag} {path} is a folder')


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


def dress(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Gives axes their title, labels and grid, and whole numbers along x."""
    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(axis='y', color='0.9')
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]))
