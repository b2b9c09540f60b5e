"""The user's own data: finding its layout, and the settings of data sets that train on it."""

from pvt_mm.datasets.own_data.data import KINDS, OwnData
from pvt_mm.datasets.own_data.finding import find_data

__all__ = ['KINDS', 'OwnData', 'find_data']
