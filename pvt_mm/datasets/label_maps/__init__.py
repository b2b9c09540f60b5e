"""Label maps of semantic segmentation: faults, and index maps in place of other tools' maps."""

from pvt_mm.datasets.label_maps.repair import repair_maps

__all__ = ['repair_maps']
