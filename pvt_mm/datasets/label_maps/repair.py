"""Label maps of other tools, and index maps that training can use in their place."""

import itertools
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from pvt_mm.utils.errors import InputError
from pvt_mm.utils.files import atomic_write
from pvt_mm.utils.text import shorten

BLACK = (0, 0, 0)
IGNORED = 255  # the label of pixels that are not trained on
BACKGROUND = 'background'
MAX_COLORS = 255  # classes that fit an index map next to IGNORED
VOID = ('ignore', 'ignored', 'void')  # names of colours that stand for no class
RARE = 0.02  # share of the pixels below which other colours are borders between classes
FEW = 0.001  # share of the pixels of a map below which another colour need not be a border
BORDER = 7  # pixels: a border is less wide
IGNORED_OF_16_BITS = 65535  # MMSegmentation casts it to 255

Color = tuple[int, int, int]  # R, G, B


def repair_maps(
    maps: Sequence[Path],
    out: Path,
    classes: Sequence[str] | None = None,
    colors: Mapping[Color, str] | None = None,
) -> tuple[list[str], list[Path], list[str]]:
    """Finds the classes of label maps, and writes index maps (label i is class i, 255 is ignored) if they are not.

    Labels 1 to N for N classes, 0 and 255 or other grey levels, three equal channels, colours, the scaled indices that
    PNGs of 2 and 4 bits are read as, and 16-bit maps become index maps. Those whose files training reads as they should
    be, palette images too, are used as they are: all of them, or all are written.

    Args:
        maps: Label maps of all splits, since a split may lack some of the labels.
        out: The folder to write to. The maps keep their names (with the suffix .png) and the folders that they do not
            have in common. It is created if something is written.
        classes: The names of the classes in the order of their labels, or None to name them by their labels or colours.
            A class for the background is put first if the maps have it and the names do not.
        colors: The name of each colour (R, G, B), or None. Colours called 'ignore', 'ignored' or 'void' are ignored.

    Returns:
        The names of the classes; the paths of the maps to use, in the order of ``maps``, with
        ``reduce_zero_label=False``; and one line for each kind of change.

    Raises:
        InputError: There are no maps, one cannot be read, or it is not known which class a label or colour is.
    """
    if not maps:
        raise InputError('there are no label maps')
    with ThreadPoolExecutor() as threads:
        read = list(threads.map(_examine, maps))
    names = list(classes) if classes else None
    in_colors = any(one.values is None for one in read)
    smeared = [path for path, one in zip(maps, read, strict=True) if one.colors is None or (in_colors and one.is_lossy)]
    if smeared:
        raise InputError(
            f'{smeared[0]} has colours between those of the classes: it was compressed with loss, resampled, or is a '
            'photograph; export the label maps as PNG, without smoothing'
        )
    found = sum((one.colors for one in read), Counter())
    if in_colors or (colors and set(found) <= set(colors)):
        numbering = _number_colors(maps, read, names, colors)
    else:
        numbering = _number_values(maps, read, names)
    if all(_is_as_read(one, numbering) for one in read):
        return numbering.classes, list(maps), numbering.notes
    paths = _targets(maps, Path(out))
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda pair: _write(*pair, numbering), zip(maps, paths, strict=True)))
    written = f'{len(maps)} label maps were written to {out}, with one channel of 8 bits'
    return numbering.classes, paths, [*numbering.notes, written]


@dataclass
class _Contents:
    """What a label map contains."""

    values: Counter | None  # pixels by index or grey level; None for colours
    colors: Counter | None  # pixels by colour (R, G, B); None if there are too many
    color_of: dict[int, Color]  # by value
    is_plain: bool  # whether training reads the values as they are here
    is_lossy: bool


@dataclass
class _Numbering:
    """Which class a value, or a colour, is; others are IGNORED."""

    classes: list[str]
    labels: dict
    notes: list[str]
    by_color: bool = False


# ------------------------------------------------------------------------------------------------------------- reading


def _examine(path: Path) -> _Contents:
    try:
        with Image.open(path) as image:
            is_lossy = image.format == 'JPEG'
            values, is_plain = _values(image)
            if values is None:
                colors = rgb(image).getcolors(maxcolors=4096)
                counts = colors and Counter({color: count for count, color in colors})
                return _Contents(None, counts, {}, False, is_lossy)
            found, counts = np.unique(values, return_counts=True)
            values = Counter(dict(zip(found.tolist(), counts.tolist(), strict=True)))
            palette = image.getpalette('RGB') if image.mode in ('P', 'PA') else None
            color_of = {value: tuple(palette[3 * value :][:3]) if palette else (value,) * 3 for value in values}
            colors = Counter()
            for value, color in color_of.items():
                colors[color] += values[value]
            return _Contents(values, colors, color_of, is_plain, is_lossy)
    except Exception as error:  # decoders raise anything
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise InputError(f'the label map {path} cannot be read: {reason}') from None


def _values(image: Image.Image) -> tuple[np.ndarray | None, bool]:
    """Returns each pixel's index or grey level, (H, W), and whether training reads the same; None for colours."""
    if image.mode in ('P', '1'):
        return np.asarray(image).astype(np.int64), True
    if image.mode == 'L':
        scale = grey_scale(image)
        return np.asarray(image).astype(np.int64) // scale, scale == 1
    if image.mode.startswith(('I', 'F')):
        values = np.asarray(image)
        if not np.array_equal(values, whole := values.astype(np.int64)):
            raise ValueError('its values are not whole numbers')
        whole[whole == IGNORED_OF_16_BITS] = IGNORED
        return whole, bool(whole.min() >= 0 and whole.max() <= IGNORED)
    channels = np.asarray(image if image.mode in ('LA', 'PA') else rgb(image))
    if image.mode in ('LA', 'PA') or (channels == channels[..., :1]).all():
        return channels[..., 0].astype(np.int64), False
    return None, False


def grey_scale(image: Image.Image) -> int:
    """Returns by what Pillow multiplies the values of a grey image: those of 2 and 4 bits are scaled to 0 to 255."""
    mode = image.tile[0][3] if image.tile else ''
    return {'L;2': 85, 'L;4': 17}.get(mode if isinstance(mode, str) else mode[0], 1)


def rgb(image: Image.Image) -> Image.Image:
    """Returns the colours; what is transparent is black."""
    if image.mode != 'RGBA':
        return image.convert('RGB')
    opaque = image.getchannel('A').point(lambda alpha: 255 * (alpha > 0))
    return Image.composite(image.convert('RGB'), Image.new('RGB', image.size), opaque)


# ----------------------------------------------------------------------------------------------------------- numbering


def _number_values(maps: Sequence[Path], read: Sequence[_Contents], names: list[str] | None) -> _Numbering:
    values = sum((one.values for one in read), Counter())
    lossy = [path for path, one in zip(maps, read, strict=True) if one.is_lossy]
    if len(names or ()) <= 2 and _is_black_and_white(maps, values, bool(lossy)):
        classes = _two(names)
        note = f'the label maps are black and white with greys between: above 127 is {classes[1]}'
        return _Numbering(classes, {value: int(value > 127) for value in values}, [note])
    if lossy:
        raise InputError(f'{lossy[0]} is a JPEG, whose compression changes labels: export the label maps as PNG')
    classes, labels, note = _number_labels(values, names)
    if len(classes) < 2:
        raise InputError(f'the label maps have one label, {shorten(values)}: there is nothing to learn')
    return _Numbering(classes, labels, [note] if note else [])


def _is_black_and_white(maps: Sequence[Path], values: Counter, is_lossy: bool) -> bool:
    """Returns whether most pixels are black or white, and the others greys that compression or resampling made.

    These lie between black and white ones. Other greys are labels.
    """
    slack = 8 if is_lossy else 4
    near = sum(count for value, count in values.items() if value <= slack or 255 - slack <= value <= 255)
    between = is_lossy or all(any(low < value < high for value in values) for low, high in ((0, 96), (160, 255)))
    if not between or not min(values) <= slack < 255 - slack <= max(values) <= 255 or near <= 0.75 * values.total():
        return False
    with ThreadPoolExecutor() as threads:
        away = sum(threads.map(lambda path: _greys_away_from_edges(path, slack, reach=8 if is_lossy else 4), maps))
    return away <= 0.01 * (values.total() - near)


def _greys_away_from_edges(path: Path, slack: int, reach: int) -> int:
    """Returns the number of grey pixels without a black and a white one within ``reach`` pixels."""
    with Image.open(path) as image:
        values = _values(image)[0].astype(np.uint8)
    window = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    is_edge = (cv2.erode(values, window) <= slack) & (cv2.dilate(values, window) >= 255 - slack)
    return int(((values > slack) & (values < 255 - slack) & ~is_edge).sum())


def _number_labels(values: Counter, names: list[str] | None) -> tuple[list[str], dict[int, int], str]:
    """Returns the names of the classes, the class of each label, and what is changed, in a line, or ''."""
    found = sorted(values)
    kept = [value for value in found if value != IGNORED]
    count = len(names) if names else len(kept)
    same = {value: value for value in kept}
    listed = f'the label maps have the labels {shorten(found, 20)}'
    if len(found) == 2 and found[0] == 0 and (found[1] > 1 or not names) and count in (1, 2):
        classes = _two(names)
        change = f'{found[1]} in the label maps is {classes[1]}: written as 1' if found[1] > 1 else ''
        return classes, {0: 0, found[1]: 1}, change
    if names and kept and kept[-1] < count:
        if kept == [0] and IGNORED in found:
            raise InputError(f'{listed}, 255 is ignored, and there are {count} classes: {shorten(names)}')
        return names, same, ''
    if kept and kept[0] == 1 and kept[-1] == count:
        classes = names or [f'class_{value}' for value in kept]
        return classes, {value: value - 1 for value in kept}, f'{listed}, without 0: written as 0 to {count - 1}'
    if names and kept and kept[0] == 0 and kept[-1] == count and BACKGROUND not in map(str.lower, names):
        return [BACKGROUND, *names], same, f'the label 0 is not among the {count} classes: it is {BACKGROUND}'
    far_apart = len(found) > 1 and min(b - a for a, b in itertools.pairwise(found)) >= 10
    levels = found if far_apart and len(found) == (count if names else len(found)) else kept
    if (names and len(levels) != count) or len(found) > MAX_COLORS:
        given = f'and there are {count} classes: {shorten(names, 20)}' if names else 'too many for classes'
        raise InputError(f'{listed}, {given}: name as many classes as there are labels')
    classes = names or [f'class_{value}' for value in levels]
    if levels == list(range(len(levels))):
        return classes, same, ''
    order = shorten((f'{value} is {name}' for value, name in zip(levels, classes, strict=True)), 20)
    numbers = {value: label for label, value in enumerate(levels)}
    return classes, numbers, f'the labels in the label maps are numbered in their order: {order}'


def _two(names: list[str] | None) -> list[str]:
    """Returns the names of background and foreground."""
    return [BACKGROUND, 'foreground'] if not names else [BACKGROUND, *names] if len(names) == 1 else names


def _number_colors(
    maps: Sequence[Path], read: Sequence[_Contents], names: list[str] | None, colors: Mapping[Color, str] | None
) -> _Numbering:
    notes, found = [], sum((one.colors for one in read), Counter())
    if not colors:
        colors = _name_colors(found, names)
        order = shorten((f'{color} is {name}' for color, name in colors.items()), 20)
        notes.append(f'there is no list of the colours of the classes: {order}')
    known = {color: name for color, name in colors.items() if name.lower() not in VOID or name in (names or ())}
    others = Counter({color: count for color, count in found.items() if color not in colors})
    if BLACK in others and BACKGROUND not in map(str.lower, (*known.values(), *(names or ()))):
        known = {BLACK: BACKGROUND, **known}
        notes.append(f'black is not in the list of colours: it is {BACKGROUND}, the first class')
        del others[BLACK]
    classes = names or list(dict.fromkeys(known.values()))
    if BACKGROUND in known.values() and BACKGROUND not in classes:
        classes = [BACKGROUND, *classes]
    if others.total() > RARE * found.total():
        listed = list_colors(others, found.total())
        raise InputError(f'the colours {listed} of the label maps are not in the list of colours: add them to it')
    unknown = [name for color, name in known.items() if color in found and name not in classes]
    if unknown:
        raise InputError(f'the list of colours has {shorten(unknown)}, and the classes are {shorten(classes, 20)}')
    if others:
        first = _check_borders(maps, read, others)
        listed = list_colors(others, found.total())
        notes.append(f'colours that are not in the list of colours are ignored in training: {listed}, as in {first}')
    labels = {color: classes.index(name) for color, name in known.items() if name in classes}
    return _Numbering(classes, labels, notes, by_color=True)


def _check_borders(maps: Sequence[Path], read: Sequence[_Contents], others: Counter) -> Path:
    """Returns a label map with colours that are not in the list.

    Raises:
        InputError: One of them is more than a border between classes.
    """
    having = [(path, one.colors) for path, one in zip(maps, read, strict=True) if one.colors.keys() & others.keys()]
    with ThreadPoolExecutor() as threads:
        for (path, colors), wide in zip(
            having, threads.map(lambda pair: _find_wide(*pair, others), having), strict=True
        ):
            if wide:
                share = 100 * colors[wide] / colors.total()
                raise InputError(
                    f'{path} has the colour {wide} ({share:.1f}% of its pixels), which is not in the list of colours: '
                    "add it to the list, with the name 'ignore' if it is no class"
                )
    return having[0][0]


def _find_wide(path: Path, colors: Counter, others: Counter) -> Color | None:
    """Returns one of other colours that covers more of a label map than a border does, or None."""
    many = [color for color in others if colors[color] > FEW * colors.total()]
    if many:
        with Image.open(path) as image:
            pixels = np.asarray(rgb(image))
    for color in many:
        inside = np.pad((pixels == color).all(-1).astype(np.uint8), 1)
        if cv2.erode(inside, np.ones((BORDER, BORDER), np.uint8)).any():
            return color
    return None


def _name_colors(found: Counter, names: list[str] | None) -> dict[Color, str]:
    """Returns the class of each colour where no list says it: one class each."""
    levels = sorted(found)
    binary = len(levels) == 2 and levels[0] == BLACK and len(names or ()) in (1, 2)
    if len(levels) > MAX_COLORS or (names and not binary):
        raise InputError(
            f'the label maps have {len(levels)} colours, and no list says which class each is: give one; the colours '
            f'are {list_colors(found)}'
        )
    by_color = [BACKGROUND if color == BLACK else 'color_{}_{}_{}'.format(*color) for color in levels]
    return dict(zip(levels, _two(names) if binary else by_color, strict=True))


def list_colors(found: Counter, total: int = 0) -> str:
    """Lists the most frequent colours, or labels, with their share of ``total`` pixels, by default of theirs."""
    total = total or found.total()
    return shorten((f'{color} ({100 * count / total:.1f}%)' for color, count in found.most_common()), 10)


# ------------------------------------------------------------------------------------------------------------- writing


def _is_as_read(one: _Contents, numbering: _Numbering) -> bool:
    """Returns whether training reads a label map as its numbering says."""
    if not one.is_plain:
        return False
    keys = one.color_of if numbering.by_color else {value: value for value in one.values}
    return all(numbering.labels.get(key, IGNORED) == value for value, key in keys.items())


def _targets(maps: Sequence[Path], out: Path) -> list[Path]:
    paths = [os.path.abspath(path) for path in maps]
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    targets = [(out / os.path.relpath(path, common)).with_suffix('.png') for path in paths]
    twice = [str(path) for path, count in Counter(targets).items() if count > 1]
    if twice:
        raise InputError(f'two label maps would be written to {twice[0]}: they differ in their suffix only; remove one')
    return targets


def _write(source: Path, target: Path, numbering: _Numbering) -> None:
    with Image.open(source) as image:
        keys = _pack(np.asarray(rgb(image)).astype(np.int64)) if numbering.by_color else _values(image)[0]
    pack = (lambda color: int(_pack(np.array(color)))) if numbering.by_color else int
    known = sorted((pack(key), label) for key, label in numbering.labels.items())
    values, labels = np.array(known).T
    index = np.searchsorted(values, keys).clip(max=len(values) - 1)
    written = np.where(values[index] == keys, labels[index], IGNORED).astype(np.uint8)
    with atomic_write(target) as temporary:
        Image.fromarray(written).save(temporary, format='PNG')


def _pack(rgb: np.ndarray) -> np.ndarray:
    return rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
