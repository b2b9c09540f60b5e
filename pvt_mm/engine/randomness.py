"""Random numbers as a function of where training is, so that there is no random state to store or to lose."""

import hashlib
import random

import numpy as np
import torch


def seed_cpu(*position: int) -> int:
    """Seeds Python's, NumPy's and the CPU's random numbers by a hash of the numbers given, and returns it."""
    digest = hashlib.blake2b(repr(position).encode(), digest_size=8).digest()
    seed = int.from_bytes(digest, 'little')
    random.seed(seed)
    np.random.seed([seed >> 32, seed & 0xFFFFFFFF])
    torch.default_generator.manual_seed(seed)
    return seed


def seed_all(*position: int) -> None:
    """Does as :func:`seed_cpu`, for the random numbers of every device; ten times slower."""
    torch.manual_seed(seed_cpu(*position))
