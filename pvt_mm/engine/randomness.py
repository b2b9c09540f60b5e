"""Random numbers as a function of the position in the training, so that there is no random state to save."""

import hashlib
import random

import numpy as np
import torch


def seed_cpu(*position: int) -> int:
    """Seeds the random numbers of Python, NumPy and the CPU with a hash of ``position``, and returns the seed."""
    digest = hashlib.blake2b(repr(position).encode(), digest_size=8).digest()
    seed = int.from_bytes(digest, 'little')
    random.seed(seed)
    np.random.seed([seed >> 32, seed & 0xFFFFFFFF])
    torch.default_generator.manual_seed(seed)
    return seed


def seed_all(*position: int) -> None:
    """Seeds the random numbers of all devices too; takes ten times as long as :func:`seed_cpu`."""
    torch.manual_seed(seed_cpu(*position))
