"""The models that configs name by ``type='pvt_mm.…'``. Some extend MMDetection's or MMSegmentation's."""

from importlib.util import find_spec

from .backbone import ARCHS, PVT
from .classifier import ImageClassifier, LinearClsHead
from .cls_data_preprocessor import ClsDataPreprocessor
from .interpolated_pyramid import InterpolatedPyramid
from .pvt import PyramidVisionTransformer

__all__ = [
    'ARCHS',
    'PVT',
    'ClsDataPreprocessor',
    'ImageClassifier',
    'InterpolatedPyramid',
    'LinearClsHead',
    'PyramidVisionTransformer',
]

if find_spec('mmdet'):
    from .instance_tta import InstanceTTAModel

    __all__ += ['InstanceTTAModel']

if find_spec('mmseg'):
    from .trans2seg_head import Trans2SegHead

    __all__ += ['Trans2SegHead']
