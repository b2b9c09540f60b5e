"""Faults in label maps, read by the transform that training reads them with."""

import copy
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from threading import Lock

import numpy as np
from mmengine import fileio
from PIL import Image

from pvt_mm.datasets.faults import Fault
from pvt_mm.datasets.label_maps.repair import IGNORED_OF_16_BITS, grey_scale, list_colors, rgb
from pvt_mm.utils.text import shorten

# Names of a class for what is none of the others. A class list that begins with one counts the label 0.
BACKGROUNDS = ('background', '_background_', 'bg', 'unlabeled', 'unlabelled', 'void', 'other', 'others', 'none')
SAMPLED = 100  # label maps that are read again to say more about a fault
NAME_BACKGROUND = 'name the background too, as the class 0 in metainfo.classes, and set num_classes=2'
CONVERT = 'give each pixel the number of its class, from 0, or let tools/train.py --data do it'


class LabelMaps:
    """The label maps of a split: what is wrong with each of them, and with all.

    Args:
        load: The pipeline's ``LoadAnnotations``, which decodes them, reduces zero labels and maps classes.
        classes: The names of the classes in the order of their labels, or their number.
        ignored: The label of pixels that are not trained on.
        has_own_classes: Whether the config gives the classes, rather than the type of a public data set.
    """

    def __init__(self, load: Callable, classes: Sequence[str] | int, ignored: int = 255, has_own_classes: bool = True):
        self.load = load
        self.classes = [f'class {i}' for i in range(classes)] if isinstance(classes, int) else list(classes)
        self.ignored = ignored
        self.has_own_classes = has_own_classes
        self.number = 0  # of label maps that were read
        self.maps: Counter[int] = Counter()  # label maps by label
        self.pixels: Counter[int] = Counter()  # pixels by label
        self._outside: dict[str, dict[int, int]] = {}  # pixels by label that is no class, by path
        self._colored: dict[str, dict] = {}  # what describes label maps of several channels, by path
        self._sample: dict[str, dict] = {}  # what describes label maps with ignored pixels, by path
        self._maps_classes = False  # whether the type of the data set has other classes, of which these are some
        self._lock = Lock()

    def check(self, info: dict, size: tuple[int, int] | None) -> tuple[list[int], list[Fault]]:
        """Reads a label map; may be called by several threads.

        Args:
            info: MMSegmentation's description of the image.
            size: The (H, W) of the image in pixels, if known.

        Returns:
            The indices of the classes in it, and its own faults. What only all label maps together show, wrong labels
            too, is left to :meth:`find_faults`.
        """
        path = info['seg_map_path']
        try:
            labels = self.load({**info, 'seg_fields': []})['gt_seg_map']
        except FileNotFoundError:
            return [], [Fault('missing label map', f'{path} of the image {info["img_path"]} does not exist')]
        except Exception as error:  # decoders raise anything
            reason = ' '.join(str(error).split()) or type(error).__name__
            return [], [Fault('unreadable label map', f'the label map {path} cannot be read: {reason}')]
        faults = list(self._file_faults(path))
        if size and labels.shape[:2] != size:
            (H, W), (image_h, image_w) = labels.shape[:2], size
            text = f'{path} has {W} x {H} pixels, its image has {image_w} x {image_h}: give both the same size'
            faults.append(Fault('wrong size', text))
        if labels.ndim != 2:
            with self._lock:
                self.number += 1
                self._colored[path] = info
            return [], faults
        counts = np.bincount(labels.ravel())
        counts = {label: int(counts[label]) for label in np.flatnonzero(counts).tolist()}
        with self._lock:
            self.number += 1
            self._maps_classes |= bool(info.get('label_map'))
            self.maps.update(counts.keys())
            self.pixels.update(counts)
            outside = {label: n for label, n in counts.items() if label >= len(self.classes) and label != self.ignored}
            if outside and not any(fault.kind == 'label map of another type' for fault in faults):
                self._outside[path] = outside
            if self.ignored in counts and len(self._sample) < SAMPLED:
                self._sample[path] = info
        return [label for label in counts if label < len(self.classes) and label != self.ignored], faults

    def find_faults(self, is_complete: bool) -> Iterator[Fault]:
        """Yields what is wrong with the label maps that were read, together.

        Args:
            is_complete: Whether they are all that is trained on: then all classes must occur.
        """
        yield from self._color_faults()
        labels, last = sorted(self.maps.keys() - {self.ignored}), len(self.classes) - 1
        has_zero = self._has_ignored_zero()
        cause = self._cause_of_outside(labels) if self._outside else None
        if cause:
            yield Fault('label outside', cause)
        for path, outside in sorted(self._outside.items()) if not cause else ():
            for label, count in outside.items():
                yield Fault('label outside', f'{path}: {count} pixels have the label {label}{self._describe_range()}')
        if self._outside or not self.maps:
            return
        fault = self._too_few(labels, has_zero, is_complete) or (is_complete and self._zero_fault(labels, has_zero))
        if fault:
            yield fault
        elif is_complete:
            unseen = [name for i, name in enumerate(self.classes) if i not in self.maps]
            hint = ''
            if has_zero and last not in self.maps:
                hint = (
                    '; reduce_zero_label=True ignores the label 0, which they have: if it is a class, set '
                    'reduce_zero_label=False'
                )
            if unseen:
                text = f'{len(unseen)} of {len(self.classes)} classes have no pixel in the label maps: '
                yield Fault('class never seen', text + shorten(unseen, 10) + hint, is_warning=True)

    # What a file's header says that its labels do not show.
    def _file_faults(self, path: str) -> Iterator[Fault]:
        try:
            content = fileio.get(path, backend_args=getattr(self.load, 'backend_args', None))
            with Image.open(io.BytesIO(content)) as image:
                if image.format == 'JPEG':
                    text = f'{path} is a JPEG, whose compression changes labels: save the label maps as PNG'
                    yield Fault('label map of another type', text)
                elif image.mode == 'L' and (scale := grey_scale(image)) > 1:
                    bits = {85: 2, 17: 4}[scale]
                    text = f'{path} has {bits} bits a pixel, and is read with its labels times {scale}: save it with 8'
                    yield Fault('label map of another type', text)
                elif image.mode.startswith(('I', 'F')):
                    values = np.nan_to_num(np.asarray(image))
                    if image.mode.startswith('I'):
                        values = values[values != IGNORED_OF_16_BITS]  # read as 255
                    if not (values == values.astype(np.uint8)).all():
                        text = f'{path} has the values {values.min()} to {values.max()}, and training reads whole '
                        yield Fault(
                            'label map of another type', text + f'numbers from 0 to 255 ({image.mode}): {CONVERT}'
                        )
        except Exception:  # decoders raise anything; the pipeline could read it
            return

    def _color_faults(self) -> Iterator[Fault]:
        if not self._colored:
            return
        first = min(self._colored)
        colors, palettes, modes, too_many = Counter(), 0, Counter(), False
        for path in sorted(self._colored)[:SAMPLED]:
            try:
                content = fileio.get(path, backend_args=getattr(self.load, 'backend_args', None))
                with Image.open(io.BytesIO(content)) as image:
                    modes[image.mode] += 1
                    palettes += image.mode == 'P'
                    found = rgb(image).getcolors(maxcolors=4096)
                    too_many |= found is None
                    colors.update({color: count for count, color in found or ()})
            except Exception:  # decoders raise anything; it is named all the same
                continue
        number = f'{len(self._colored)} of {self.number} label maps, such as {first},'
        backend = getattr(self.load, 'imdecode_backend', None)
        if palettes:
            text = (
                f"have a palette, which imdecode_backend='{backend}' of LoadAnnotations turns into colours: remove it"
            )
            yield Fault('label map of colours', f'{number} {text} (Pillow, the default, reads the labels)')
        elif too_many:
            text = (
                'have more colours than there can be classes: they were compressed with loss or smoothed, or are images'
            )
            yield Fault('label map of colours', f'{number} {text}; save them as PNG without smoothing')
        elif all(len(set(color)) == 1 for color in colors):
            values = Counter({color[0]: count for color, count in colors.items()})
            text = f'have {shorten(modes)} channels in place of one, with the values {list_colors(values)}: save one'
            yield Fault('label map of colours', f'{number} {text}, or let tools/train.py --data do it')
        else:
            text = f'have colours in place of labels, {list_colors(colors)}: {CONVERT}'
            yield Fault('label map of colours', f'{number} {text}')

    def _describe_range(self) -> str:
        reduced = ' after reduce_zero_label' if self._reduces() else ''
        n = len(self.classes)
        return (
            f'{reduced}, and the {n} classes are 0 to {n - 1}: fix the label map, or set num_classes and '
            'metainfo.classes'
        )

    def _cause_of_outside(self, labels: list[int]) -> str | None:
        """Returns what explains all labels outside of the classes, or None."""
        n, listed = len(self.classes), f'the label maps have the labels {shorten(sorted(self.maps), 20)}'
        if self._reduces() or self._maps_classes:
            return None
        if n == 1 and labels == [0, 1]:
            return f'{listed}, and there is one class, {self.classes[0]}: {NAME_BACKGROUND}'
        if labels[0] == 1 and labels[-1] == n:
            return (
                f'{listed}, and the {n} classes are 0 to {n - 1}: set reduce_zero_label=True, with which 1 is the first'
            )
        if labels[0] == 0 and labels[-1] == n:
            return (
                f'{listed}, one more than the {n} classes: if 0 is not a class, set reduce_zero_label=True, which '
                'ignores it; if it is one, put its name first in metainfo.classes, and set num_classes'
            )
        levels = len(labels) + (self.ignored in self.maps)
        if 1 < len(labels) <= n <= levels and np.diff(labels).min() >= 10:
            return f'{listed}, grey levels in place of the {n} labels 0 to {n - 1}: {CONVERT}'
        return None

    def _too_few(self, labels: list[int], has_zero: bool, is_complete: bool) -> Fault | None:
        """Returns the fault that there is less than two classes to learn."""
        if len(labels) > 1:
            return None
        n, kind = len(self.classes), 'one label'
        what = f'the label {labels[0]} ({self.classes[labels[0]]})' if labels else 'no other'
        if n == 1:
            return Fault(kind, f'metainfo.classes has one class, {self.classes[0]}: {NAME_BACKGROUND}')
        if not (is_complete or n == 2 or not labels):
            return None
        if has_zero:
            text = f'the label maps have the label 0, which reduce_zero_label=True ignores, and then {what}'
            return Fault(kind, f'{text}: set reduce_zero_label=False')
        if self.ignored in self.maps:
            number = f'1 ({self.classes[1]})' if n == 2 and labels == [0] else 'the number of its class'
            text = f'the label maps have {what} and {self.ignored}, which is ignored: write {number} in place of '
            return Fault(kind, f'{text}{self.ignored}, or let tools/train.py --data do it')
        if is_complete:
            return Fault(kind, f'the label maps have {what} only, and there are {n} classes: there is nothing to learn')
        return None

    def _zero_fault(self, labels: list[int], has_zero: bool) -> Fault | None:
        """Returns the fault that ``reduce_zero_label`` ignores a class and moves the others down."""
        n, last = len(self.classes), len(self.classes) - 1
        if not has_zero or not self.has_own_classes or self._maps_classes or last in labels:
            return None
        if self.classes[0].strip().lower() not in BACKGROUNDS and labels != list(range(last)):
            return None
        return Fault(
            'zero label ignored',
            f'reduce_zero_label=True ignores the label 0 of the label maps and makes 1 the first class, '
            f'{self.classes[0]}; the last, {self.classes[-1]}, never occurs: if the labels 0 to {last} are the {n} '
            f'classes, set reduce_zero_label=False; if 0 is none of them, remove {self.classes[0]} or '
            f'{self.classes[-1]} from metainfo.classes, and set num_classes',
        )

    def _reduces(self) -> bool:
        return bool(getattr(self.load, 'reduce_zero_label', False))

    def _has_ignored_zero(self) -> bool:
        """Returns whether the label 0 occurs and is ignored."""
        if not self._reduces():
            return False
        load = copy.copy(self.load)
        load.reduce_zero_label = False
        as_stored = {'reduce_zero_label': False, 'label_map': None}
        for _, info in sorted(self._sample.items()):
            if not load({**info, **as_stored, 'seg_fields': []})['gt_seg_map'].all():
                return True
        return False
