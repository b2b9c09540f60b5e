"""Checkpoints: names and shapes of every format, safe reading, strict loading, integrity."""
