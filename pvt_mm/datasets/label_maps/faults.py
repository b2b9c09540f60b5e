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
        if not self.maps:
            return
        n, labels, has_zero = len(self.classes), sorted(self.maps.keys() - {self.ignored}), self._has_ignored_zero()
        after = ' after reduce_zero_label' if self._reduces() else ''
        listed = f'the label maps have the labels {shorten(sorted(self.maps), 20)}{after}'
        if n == 1:
            yield Fault('one label', f'{listed}, and there is one class, {self.classes[0]}: {NAME_BACKGROUND}')
            return
        for path, outside in sorted(self._outside.items()):
            counts = shorten(f'{count} pixels have the label {label}' for label, count in outside.items())
            text = f'{path}: {counts}; {listed}, and the {n} classes are 0 to {n - 1}: {CONVERT}, or set num_classes, '
            yield Fault('label outside', f'{text}metainfo.classes and reduce_zero_label ({self._reduces()} here)')
        if self._outside:
            return
        unseen = [name for i, name in enumerate(self.classes) if i not in self.maps]
        ignored = [f'{self.ignored} is ignored'] * (self.ignored in self.maps and not has_zero)
        ignored += ['reduce_zero_label=True ignores the label 0'] * has_zero
        is_one = len(labels) < 2 and (n == 2 or not labels)  # background, and what should have been 1 is ignored
        if (is_one and ignored) or (is_complete and len(labels) < 2):
            what = f'only {self.classes[labels[0]]} is left' if labels else 'none is left'
            yield Fault('one label', f'{"; ".join([listed, *ignored])}: of {n} classes {what}; {CONVERT}')
        elif is_complete and unseen:
            is_clear = (
                self.has_own_classes and not self._maps_classes and self.classes[0].strip().lower() in BACKGROUNDS
            )
            if has_zero and is_clear and self.classes[-1] in unseen:
                text = (
                    f'reduce_zero_label=True ignores the label 0 and makes 1 the first class, {self.classes[0]}, and '
                )
                hint = f'set reduce_zero_label=False, or remove {self.classes[0]} from metainfo.classes'
                yield Fault('zero label ignored', f'{text}{self.classes[-1]} never occurs: {hint}')
                return
            text = f'{len(unseen)} of {n} classes have no pixel in the label maps: {shorten(unseen, 10)}'
            if has_zero and self.classes[-1] in unseen:
                text += (
                    '; reduce_zero_label=True ignores the label 0, which they have: if it is a class, set it to False'
                )
            yield Fault('class never seen', text, is_warning=True)

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
