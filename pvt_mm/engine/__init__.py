"""What MMEngine's runner lacks: configs read with care, runs checked before they start and resumed exactly."""

from .checkpoint_hook import CheckpointHook
from .layer_decay import LayerDecayOptimizerConstructor
from .loops import EpochBasedTrainLoop, IterBasedTrainLoop

__all__ = ['CheckpointHook', 'EpochBasedTrainLoop', 'IterBasedTrainLoop', 'LayerDecayOptimizerConstructor']
