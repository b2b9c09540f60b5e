"""The models that configs name by ``type='pvt_mm.…'``. Some extend MMDetection's or MMSegmentation's."""

from typing import NoReturn

from pvt_mm.registry import MODELS

from .archs import ARCHS, ARCHS_V2
from .backbone import PVT, PVTv2
from .classifier import ImageClassifier, LinearClsHead
from .cls_data_preprocessor import ClsDataPreprocessor
from .contiguous_ops import make_operators_contiguous
from .interpolated_pyramid import InterpolatedPyramid
from .pvt import PyramidVisionTransformer
from .pvt_v2 import PyramidVisionTransformerV2

__all__ = [
    'ARCHS',
    'ARCHS_V2',
    'PVT',
    'ClsDataPreprocessor',
    'ImageClassifier',
    'InterpolatedPyramid',
    'LinearClsHead',
    'PVTv2',
    'PyramidVisionTransformer',
    'PyramidVisionTransformerV2',
]


def _register_missing(name: str, package: str, error: Exception) -> None:
    """Makes a config that names a model fail with the reason why it could not be imported; the others work."""
    why = ' '.join(f'{type(error).__name__}: {error}'.split())

    def missing(*_: object, **__: object) -> NoReturn:
        raise ImportError(f'{name} needs {package}, which cannot be imported ({why}): see tools/doctor.py') from error

    MODELS.register_module(name, module=missing)


make_operators_contiguous()

# Where one of the two is not installed, or does not work here, the other has its PVT. A wrong MMCV raises
# AssertionError, a wrong NumPy ValueError.
try:
    from .det_data_preprocessor import DetDataPreprocessor
    from .detr import DETR
    from .instance_tta import InstanceTTAModel

    __all__ += ['DETR', 'DetDataPreprocessor', 'InstanceTTAModel']
except Exception as error:
    _register_missing('DETR', 'MMDetection', error)
    _register_missing('DetDataPreprocessor', 'MMDetection', error)
    _register_missing('InstanceTTAModel', 'MMDetection', error)

try:
    from .seg_data_preprocessor import SegDataPreProcessor
    from .trans2seg_head import Trans2SegHead

    __all__ += ['SegDataPreProcessor', 'Trans2SegHead']
except Exception as error:
    _register_missing('SegDataPreProcessor', 'MMSegmentation', error)
    _register_missing('Trans2SegHead', 'MMSegmentation', error)
