"""The registry scope ``pvt_mm``: what makes ``type='pvt_mm.PVT'`` resolve in any OpenMMLab config.

MMEngine imports ``<scope>.registry`` on the first ``type='<scope>.…'`` that it meets and swallows an ImportError, so
this file imports nothing but MMEngine.
"""

from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='pvt_mm', locations=['pvt_mm.models'])
