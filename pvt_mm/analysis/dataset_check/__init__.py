"""Checks of all data that a config reads."""

from pvt_mm.analysis.dataset_check.check import check_datasets
from pvt_mm.analysis.dataset_check.findings import Fault, Findings, Item, Split

__all__ = ['Fault', 'Findings', 'Item', 'Split', 'check_datasets']
