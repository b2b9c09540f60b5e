"""COCO annotations: reading, faults, and a corrected copy."""

from pvt_mm.datasets.coco.faults import KINDS, Fault, find_faults
from pvt_mm.datasets.coco.reading import encoding_fault, read_coco
from pvt_mm.datasets.coco.repair import repair

__all__ = ['KINDS', 'Fault', 'encoding_fault', 'find_faults', 'read_coco', 'repair']
