"""The registry scope ``pvt_mm``: what makes ``type='pvt_mm.PVT'`` resolve in any OpenMMLab config.

MMEngine imports ``<scope>.registry`` on the first ``type='<scope>.…'`` that it meets and swallows an ImportError, so
this file imports nothing but MMEngine.
"""

from mmengine import registry
from mmengine.registry import Registry


def _child(parent: Registry, location: str) -> Registry:
    return Registry(parent.name, parent=parent, scope='pvt_mm', locations=[location])


MODELS = _child(registry.MODELS, 'pvt_mm.models')
DATASETS = _child(registry.DATASETS, 'pvt_mm.datasets')
TRANSFORMS = _child(registry.TRANSFORMS, 'pvt_mm.datasets')
DATA_SAMPLERS = _child(registry.DATA_SAMPLERS, 'pvt_mm.datasets')
METRICS = _child(registry.METRICS, 'pvt_mm.evaluation')
OPTIM_WRAPPER_CONSTRUCTORS = _child(registry.OPTIM_WRAPPER_CONSTRUCTORS, 'pvt_mm.engine')
HOOKS = _child(registry.HOOKS, 'pvt_mm.engine')
LOOPS = _child(registry.LOOPS, 'pvt_mm.engine')
