"""Choosing the images to validate on, where the data has no validation split."""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping

SHARE = 0.2  # of the images


def choose_val(images: Mapping[str, Iterable[Hashable]], seed: int) -> set[str]:
    """Returns the names of the images to validate on, about a fifth; none if each image has a class of its own.

    The choice depends on the names and the seed alone, whatever the order and the machine. Images of one source, which
    Roboflow's augmentations are (``name_jpg.rf.<hash>.jpg``), are chosen together. Each class stays in training, and is
    validated too if it has images of two sources, as far as other classes allow.

    Args:
        images: The classes in each image, by its name.
        seed: Another one gives another choice.
    """
    sources: dict[str, set[str]] = {}
    for name in images:
        sources.setdefault(source_of(name), set()).add(name)
    classes = {source: {label for name in names for label in images[name]} for source, names in sources.items()}
    order = sorted(sources, key=lambda source: (hashlib.sha256(f'{seed}/{source}'.encode()).digest(), source))
    left = Counter(label for found in classes.values() for label in found)  # sources of a class in training
    total = dict(left)
    val: set[str] = set()

    def is_free(source: str) -> bool:
        return source not in val and len(val) + 1 < len(order) and all(left[label] > 1 for label in classes[source])

    def move(source: str) -> None:
        val.add(source)
        left.subtract(classes[source])

    for label in sorted(total, key=lambda label: (total[label], str(label))):
        if left[label] == total[label] > 1:
            source = next((one for one in order if label in classes[one] and is_free(one)), None)
            if source is not None:
                move(source)
    count = sum(len(sources[source]) for source in val)
    wanted = max(1, round(SHARE * len(images)))
    for source in order:
        if count < wanted and count + len(sources[source]) <= 2 * wanted and is_free(source):
            move(source)
            count += len(sources[source])
    if not val:
        val.update(sorted(filter(is_free, order), key=lambda source: len(sources[source]))[:1])
    return {name for source in val for name in sources[source]}


def source_of(name: str) -> str:
    """Returns what an image's name says of its source: ``cat_jpg`` for ``train/cat_jpg.rf.0a1b2c.jpg``."""
    name = unicodedata.normalize('NFC', name)  # macOS writes accents as characters of their own
    folder, _, base = name.rpartition('/')
    source, augmented, _ = base.partition('.rf.')
    return source if augmented else f'{folder}/{base}'
