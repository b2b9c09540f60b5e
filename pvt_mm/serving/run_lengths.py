"""COCO's compressed run lengths of masks, equal to those of pycocotools."""

import numpy as np


def encode(mask: np.ndarray) -> dict:
    """Returns a mask (H, W) of booleans, or of 0 and 1, as ``size`` [H, W] and ``counts``, which JSON can hold."""
    flat = np.asarray(mask, bool).ravel(order='F')
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0, 0] if flat[:1].any() else [0], changes, [flat.size]])  # the first run is of zeros
    runs = np.diff(edges)
    deltas = runs.copy()
    deltas[3:] -= runs[1:-2]  # to the last run of the same value
    # A number is written in groups of 5 bits, the lowest first, of which all except the last are marked by 32.
    sizes = np.ones(len(deltas), int)
    while (more := (deltas < -(1 << (5 * sizes - 1))) | (deltas >= 1 << (5 * sizes - 1))).any():
        sizes += more
    place = np.arange(sizes.max())
    groups = (deltas[:, None] >> (5 * place)) & 31 | 32 * (place < sizes[:, None] - 1)
    letters = groups[place < sizes[:, None]] + 48
    return dict(size=[int(side) for side in mask.shape], counts=letters.astype(np.uint8).tobytes().decode())


def decode(coded: dict) -> np.ndarray:
    """Returns the mask (H, W), boolean, of :func:`encode` or pycocotools.

    Raises:
        ValueError: The runs are not as long as the mask.
    """
    counts = coded['counts']
    letters = np.frombuffer(counts.encode() if isinstance(counts, str) else counts, np.uint8).astype(int) - 48
    last = letters < 32
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    sizes = np.diff(np.append(starts, len(letters)))
    place = np.arange(len(letters)) - np.repeat(starts, sizes)
    runs = np.add.reduceat((letters & 31) << (5 * place), starts)
    runs -= ((letters[last] & 16) > 0) * (1 << (5 * sizes))
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    height, width = coded['size']
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T
