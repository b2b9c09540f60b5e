"""What all figures share: colours, style, saving."""

import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from pvt_mm.utils.errors import InputError
from pvt_mm.utils.files import atomic_write

# The palette of Okabe and Ito, which colour-blind readers can tell apart. Its yellow is too pale for lines.
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
LINE_COLORS = [color for name, color in OKABE_ITO.items() if name != 'yellow']
# For annotations on images, the bright ones first.
CLASS_COLORS = [
    OKABE_ITO[name] for name in ('orange', 'sky blue', 'green', 'vermilion', 'purple', 'yellow', 'blue', 'black')
]
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
    'font.size': 10,
    'xtick.color': '0.4',
    'ytick.color': '0.4',
}
FORMATS = ('.png', '.svg', '.pdf', '.jpg')


def check_out(path: str | os.PathLike, flag: str = '--out') -> None:
    """Checks that a figure can be saved as ``path``, the value of ``flag``.

    Raises:
        InputError: The suffix is not one of :data:`FORMATS`, or the path is a folder.
    """
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
    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(axis='y', color='0.9')
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]))


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
