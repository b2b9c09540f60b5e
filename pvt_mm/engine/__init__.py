"""What MMEngine's runner lacks: configs read with care, runs checked before they start, layer-wise learning rates."""

from .finite_hook import FiniteHook
from .layer_decay import LayerDecayOptimizerConstructor

__all__ = ['FiniteHook', 'LayerDecayOptimizerConstructor']
