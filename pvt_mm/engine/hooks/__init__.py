"""Hooks: atomic checkpoints, and steps with NaN/Inf."""

from .checkpoint_hook import CheckpointHook
from .finite_hook import FiniteHook

__all__ = ['CheckpointHook', 'FiniteHook']
