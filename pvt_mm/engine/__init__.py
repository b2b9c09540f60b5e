"""Loops, hooks and optimizer constructors for MMEngine's runner: exact resume, NaN/Inf checks, compiled parts."""

from .hooks.backends_hook import BackendsHook
from .hooks.checkpoint_hook import CheckpointHook
from .hooks.compile_hook import CompileHook
from .hooks.early_stopping_hook import EarlyStoppingHook
from .hooks.finite_hook import FiniteHook
from .hooks.float32_ops_hook import Float32OpsHook
from .hooks.new_schedule_hook import NewScheduleHook
from .loops import EpochBasedTrainLoop, IterBasedTrainLoop
from .optimizers.layer_decay import LayerDecayOptimizerConstructor

__all__ = [
    'BackendsHook',
    'CheckpointHook',
    'CompileHook',
    'EarlyStoppingHook',
    'EpochBasedTrainLoop',
    'FiniteHook',
    'Float32OpsHook',
    'IterBasedTrainLoop',
    'LayerDecayOptimizerConstructor',
    'NewScheduleHook',
]
