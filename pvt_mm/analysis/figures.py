"""What all figures share: colours, style, saving."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from pvt_mm.utils.errors import InputError
from pvt_mm.utils.files import atomic_write

# The palette of Okabe and Ito, which colour-blind readers can tell apart. Its yellow is too pale for lines.
OKABE_ITO = {
    'orange': '#E69F00',
    'sky blue': '#56B4E9',
    'green': '#009E73',
    'vermilion': '#D55E00',
    'purple': '#CC79A7',
    'yellow': '#F0E442',
    'blue': '#0072B2',
    'black': '#000000',
}
CLASS_COLORS = list(OKABE_ITO.values())  # for annotations on images, the bright ones first
LINE_COLORS = [OKABE_ITO[name] for name in ('blue', 'vermilion', 'green', 'orange', 'purple', 'sky blue', 'black')]
MARKERS = 'osD^vPX'
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
    'xtick.color': '0.4',
    'ytick.color': '0.4',
}
FORMATS = ('.png', '.svg', '.pdf', '.jpg')


@contextlib.contextmanager
def new_figure(width: float, height: float, columns: int = 1) -> Iterator[tuple[Figure, Any]]:
    """Yields a figure of a size in inches and its axes (an array if there are several columns), drawn in our style."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout='constrained')
        yield figure, figure.subplots(1, columns)


def set_title(figure: Figure, title: str) -> None:
    """Sets the title of a figure, without its middle if it is wider than the figure."""
    figure.suptitle(shorten_middle(title, int(12 * figure.get_figwidth())), fontsize=11)  # 12 characters an inch


def shorten_middle(text: str, limit: int) -> str:
    """Returns a text of at most ``limit`` characters, without its middle if it is longer."""
    kept = limit - 1
    return text if len(text) <= limit else f'{text[: kept - kept // 3]}…{text[-(kept // 3) :]}'


def check_out(path: str | os.PathLike, flag: str = '--out') -> None:
    """Raises an InputError if ``path``, the value of ``flag``, is a folder or its suffix not in :data:`FORMATS`."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise InputError(f'{flag} {path}: name a file that ends in one of {", ".join(FORMATS)}')
    if path.is_dir():
        raise InputError(f'{flag} {path} is a folder: name a file')


def save_figure(figure: Figure, path: str | os.PathLike, dpi: int = 160) -> None:
    """Writes a figure atomically, in the format of the path's suffix. The same figure gives the same bytes.

    Raises:
        InputError: The file cannot be written.
    """
    kind = Path(path).suffix.lower().removeprefix('.')
    undated = {'svg': {'Date': None}, 'pdf': {'CreationDate': None}}.get(kind)
    try:
        with atomic_write(path) as temporary, matplotlib.rc_context({'svg.hashsalt': 'pvt_mm'}):
            figure.savefig(temporary, format=kind, dpi=dpi, facecolor='white', metadata=undated)
    except OSError as error:
        raise InputError(f'{path} cannot be written: {error.strerror or error}') from None


def dress(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Gives axes a title, labels, a grid, and integer ticks along x."""
    axes.set(title=title, xlabel=x_label, ylabel=y_label, axisbelow=True)
    axes.grid(axis='y', color='0.9')
    axes.tick_params(length=0)
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]))


def dress_rows(axes: Axes, title: str, x_label: str, names: Sequence[str]) -> None:
    """Gives axes with a row for each name, the first at the top, a title, a label and a grid."""
    dress(axes, title, x_label, '')
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.grid(visible=False, axis='y')
    axes.grid(axis='x', color='0.9')
    axes.spines['left'].set_visible(False)
    axes.set_yticks(range(len(names)), names, fontsize=11, color='0.15')
    axes.set_ylim(len(names) - 0.4, -0.6)


def space_evenly(length: int, count: int) -> list[int]:
    """Returns up to ``count`` indices, evenly spaced, of a sequence of a length."""
    return np.linspace(0, length - 1, min(length, count)).round().astype(int).tolist()


def draw_box(axes: Axes, corners: Sequence[float], color: str) -> None:
    """Draws a box (x1, y1, x2, y2) in pixels, its edge outlined in black."""
    x1, y1, x2, y2 = corners
    for edge, width in (('black', 3), (color, 1.7)):
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=edge, linewidth=width))


def add_class_legend(figure: Figure, names: Sequence[str], colors: Sequence[str]) -> None:
    """Adds a legend of class names and their colours below a figure, if there are any."""
    handles = [Patch(facecolor=color, label=name) for name, color in zip(names, colors, strict=False)]
    if handles:
        figure.legend(handles=handles, loc='outside lower center', ncols=min(8, len(handles)), frameon=False)
