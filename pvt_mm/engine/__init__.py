"""Loops, hooks and optimizer constructors for MMEngine's runner: exact resume, atomic checkpoints, NaN/Inf checks."""

from .hooks.checkpoint_hook import CheckpointHook
from .hooks.finite_hook import FiniteHook
from .loops import EpochBasedTrainLoop, IterBasedTrainLoop
from .optimizers.layer_decay import LayerDecayOptimizerConstructor

__all__ = [
    'CheckpointHook',
    'EpochBasedTrainLoop',
    'FiniteHook',
    'IterBasedTrainLoop',
    'LayerDecayOptimizerConstructor',
]
