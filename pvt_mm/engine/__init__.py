"""Loops, hooks and optimizer constructors for MMEngine's runner: exact resume, atomic checkpoints, NaN/Inf checks."""

from .hooks.backends_hook import BackendsHook
from .hooks.checkpoint_hook import CheckpointHook
from .hooks.finite_hook import FiniteHook
from .hooks.float32_ops_hook import Float32OpsHook
from .loops import EpochBasedTrainLoop, IterBasedTrainLoop
from .optimizers.layer_decay import LayerDecayOptimizerConstructor

__all__ = [
    'BackendsHook',
    'CheckpointHook',
    'EpochBasedTrainLoop',
    'FiniteHook',
    'Float32OpsHook',
    'IterBasedTrainLoop',
    'LayerDecayOptimizerConstructor',
]
