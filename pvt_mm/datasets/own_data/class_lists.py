"""The names and colours of classes, from the files that tools put next to label maps."""

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pvt_mm.datasets.label_maps import Color
from pvt_mm.datasets.own_data.others import read_other
from pvt_mm.datasets.own_data.tree import Tree, read_lines
from pvt_mm.utils.errors import InputError
from pvt_mm.utils.text import shorten

_HELP = 'put them into classes.txt, one a line'


@dataclass(frozen=True)
class ClassList:
    """The names of the classes in the order of their labels, the name of each colour (R, G, B), and what was read."""

    classes: tuple[str, ...] | None = None
    colors: dict[Color, str] | None = None
    note: str = ''
    help: str = _HELP


def read_class_list(tree: Tree) -> ClassList:
    """Returns what the first of the known files says, an empty list if there is none.

    Raises:
        InputError: It cannot be read, or several of one name differ.
    """
    for name, parse in _PARSERS.items():
        paths = sorted((path for path in tree.ending(name) if path.name.lower() == name), key=lambda p: len(p.parts))
        parsed = [(path, found) for path in paths if (found := parse(tree.root / path))]
        if not parsed:
            continue
        path, (classes, colors) = parsed[0]
        for other, found in parsed[1:]:
            if found != parsed[0][1] and len(other.parts) == len(path.parts):
                raise InputError(f'{path} and {other} in {tree.root} list other classes: make them the same')
        if colors and len({*colors.values()}) < len(colors) and len({*classes}) < len(classes):
            classes = list(dict.fromkeys(classes))
        repeated = [one for one in classes if classes.count(one) > 1]
        if repeated:
            raise InputError(f'{tree.root / path} lists {shorten(dict.fromkeys(repeated))} twice: each class once')
        note = f'{len(classes)} classes{" and their colours" * bool(colors)} from {path}'
        return ClassList(tuple(classes), colors, note)
    return ClassList()


Parsed = tuple[list[str], dict[Color, str] | None] | None


def _by_color(rows: Sequence[tuple[str, Sequence]], path: Path) -> Parsed:
    """Returns names given with their colours, R, G and B."""
    colors = {}
    for name, color in rows:
        try:
            red, green, blue = map(int, color)
        except (ValueError, TypeError):
            raise InputError(f'{path} gives {name} the colour {color}: write three numbers, R, G and B') from None
        colors[red, green, blue] = name.strip()
    return [name.strip() for name, _ in rows], colors


def _labelmap(path: Path) -> Parsed:
    """CVAT's and VOC's ``name:r,g,b:parts:actions``, or plain names."""
    lines = [line for line in read_lines(path) if not line.startswith('#')]
    rows = [re.fullmatch(r'(.+?):(?:(\d+),(\d+),(\d+))?(?::.*)?', line) for line in lines]
    if all(row and row[2] for row in rows):
        return _by_color([(row[1], row.groups()[1:]) for row in rows], path) if rows else None
    return ([row[1] if row else line for row, line in zip(rows, lines, strict=True)], None) if lines else None


def _csv(path: Path) -> Parsed:
    """Roboflow's ``Pixel Value, Class`` or ``name,r,g,b``."""
    rows = [[cell.strip() for cell in row] for row in csv.reader(read_lines(path))]
    header = [cell.lower() for cell in rows[0]] if rows else []
    if header[:2] == ['pixel value', 'class']:
        return _by_value({row[0]: row[1] for row in rows[1:]}, path)
    if len(header) == 4 and header[1:] in (['r', 'g', 'b'], ['red', 'green', 'blue']):
        return _by_color([(row[0], row[1:]) for row in rows[1:]], path)
    return None


def _by_value(names: dict, path: Path) -> Parsed:
    """Returns names given by their labels, which need not be without gaps."""
    try:
        values = {int(value): str(name) for value, name in names.items()}
    except ValueError:
        raise InputError(f'{path} has labels that are not integers: {shorten(names)}') from None
    if not values or min(values) < 0 or max(values) > 255:
        raise InputError(f'{path} has the labels {shorten(names)}: they must be within 0 to 255')
    return [values.get(value, f'class_{value}') for value in range(max(values) + 1)], None


def _json(path: Path) -> Parsed:
    """A list of names, or of objects with a name and perhaps a colour; names by labels, or labels by names."""
    content = read_other(path)
    if isinstance(content, list) and all(isinstance(one, str) for one in content):
        return (content, None) if content else None
    if isinstance(content, list) and all(isinstance(one, dict) and isinstance(one.get('name'), str) for one in content):
        rows = [(one['name'], one.get('color')) for one in content]
        is_rgb = all(isinstance(color, list) and len(color) == 3 for _, color in rows)
        return _by_color(rows, path) if is_rgb else ([name for name, _ in rows], None)
    if isinstance(content, dict) and content:
        is_by_name = all(type(label) is int for label in content.values())
        return _by_value({label: name for name, label in content.items()} if is_by_name else content, path)
    return None


def _names(path: Path) -> Parsed:
    """A name in each line, perhaps after its label."""
    lines = read_lines(path)
    numbered = [re.fullmatch(r'(\d+)\s*[\s:,;=]\s*(.+)', line) for line in lines]
    if lines and all(numbered) and len({row[1] for row in numbered}) == len(lines):
        return _by_value({row[1]: row[2] for row in numbered}, path)
    return (lines, None) if lines else None


_PARSERS: dict[str, Callable[[Path], Parsed]] = {
    'labelmap.txt': _labelmap,
    'class_dict.csv': _csv,
    '_classes.csv': _csv,
    'classes.json': _json,
    'classes.txt': _names,
}
