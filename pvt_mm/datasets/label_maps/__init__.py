"""Label maps of semantic segmentation: faults, and index maps in place of other tools' maps."""

from pvt_mm.datasets.label_maps.faults import LabelMaps
from pvt_mm.datasets.label_maps.files import find_file_faults
from pvt_mm.datasets.label_maps.repair import IGNORED, Color, repair_maps

__all__ = ['IGNORED', 'Color', 'LabelMaps', 'find_file_faults', 'repair_maps']
