"""MMSegmentation's data preprocessor, for images with any number of channels."""

from mmseg.models.data_preprocessor import SegDataPreProcessor as MMSegDataPreProcessor

from pvt_mm.models.any_channels import AnyChannels
from pvt_mm.registry import MODELS


@MODELS.register_module()
class SegDataPreProcessor(AnyChannels, MMSegDataPreProcessor):
    """Normalises images of any number of channels, and is otherwise MMSegmentation's ``SegDataPreProcessor``.

    The arguments are those of :class:`AnyChannels`, and of MMSegmentation's class.
    """
