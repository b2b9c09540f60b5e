"""The models that configs name by ``type='pvt_mm.…'``."""

from .pvt import ARCHS, PVT

__all__ = ['ARCHS', 'PVT']
