"""Metrics that MMEngine, MMDetection and MMSegmentation lack."""

from .accuracy import Accuracy

__all__ = ['Accuracy']
