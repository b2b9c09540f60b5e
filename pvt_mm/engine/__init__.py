"""Loops, hooks and optimizer constructors for MMEngine's runner: exact resume, atomic checkpoints, NaN/Inf checks."""

from .hooks import CheckpointHook, FiniteHook
from .loops import EpochBasedTrainLoop, IterBasedTrainLoop
from .optimizers import LayerDecayOptimizerConstructor

__all__ = [
    'CheckpointHook',
    'EpochBasedTrainLoop',
    'FiniteHook',
    'IterBasedTrainLoop',
    'LayerDecayOptimizerConstructor',
]
