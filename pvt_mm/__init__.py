"""Pyramid Vision Transformer (Wang et al., 2021) for MMDetection, MMSegmentation and anything built on MMEngine."""

from .version import __version__

__all__ = ['__version__']
