"""MMDetection's data preprocessor, for images with any number of channels."""

from mmdet.models.data_preprocessors import DetDataPreprocessor as MMDetDataPreprocessor

from pvt_mm.models.any_channels import AnyChannels
from pvt_mm.registry import MODELS


@MODELS.register_module()
class DetDataPreprocessor(AnyChannels, MMDetDataPreprocessor):
    """Normalises images of any number of channels, and is otherwise MMDetection's ``DetDataPreprocessor``.

    The arguments are those of :class:`AnyChannels`, and of MMDetection's class.
    """
