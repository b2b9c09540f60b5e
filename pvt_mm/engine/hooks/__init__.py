"""Hooks: atomic checkpoints, and steps with NaN/Inf."""
