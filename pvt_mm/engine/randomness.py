"""Random numbers as a function of the position in the training, so that there is no random state to save."""

import hashlib
import logging
import random

import numpy as np
import torch
from mmengine.logging import print_log
from torch import nn

from pvt_mm.utils.errors import InputError
from pvt_mm.utils.text import shorten

# Functions without a deterministic algorithm on CUDA, by the package and name of the modules that call them: of the
# models here, and of some others. PyTorch raises at the first step for the rest.
NONDETERMINISTIC = {
    ('mmdet', 'SinePositionalEncoding'): 'cumsum',
    ('mmdet', 'BFP'): 'adaptive_max_pool2d',
    ('mmseg', 'LovaszLoss'): 'cumsum',
    ('mmseg', 'PPM'): 'adaptive_avg_pool2d',
    ('mmseg', 'CrossEntropyLoss'): 'nll_loss2d',
    ('mmseg', 'OhemCrossEntropy'): 'nll_loss2d',
}


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


def check_deterministic(model: nn.Module) -> None:
    """Checks on a GPU that a model can be trained with deterministic algorithms, if those are asked for.

    mmcv's operators are only warned of: many add up gradients in any order, which PyTorch does not know of.

    Raises:
        InputError: The model needs a function that has no such algorithm on CUDA, where PyTorch would raise.
    """
    if not (torch.cuda.is_available() and torch.are_deterministic_algorithms_enabled()):
        return
    operators = set()
    for name, module in model.named_modules():
        for base in type(module).__mro__:
            package = base.__module__.split('.')[0]
            function = NONDETERMINISTIC.get((package, base.__name__))
            if function:
                raise InputError(
                    f'--deterministic: {name} ({base.__name__}) needs {function}, for which PyTorch has no '
                    'deterministic algorithm on a GPU: leave --deterministic out'
                )
            if base.__module__.startswith('mmcv.ops'):
                operators.add(base.__name__)
    if operators:
        print_log(
            f'--deterministic: the gradients of {shorten(sorted(operators))} from mmcv may differ in the last bits '
            'from run to run on a GPU',
            logger='current',
            level=logging.WARNING,
        )
