"""Pyramid Vision Transformer (Wang et al., 2021) for MMDetection, MMSegmentation and anything built on MMEngine.

``PVT`` is the backbone, ``Predictor`` a trained model for images, and ``train`` trains the model of a config. Each is
imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .analysis.predictor import Predictor
    from .apis.training import train
    from .models import PVT, PVTv2

__all__ = ['PVT', 'PVTv2', 'Predictor', '__version__', 'train']
_MODULES = {'PVT': 'models', 'PVTv2': 'models', 'Predictor': 'analysis.predictor', 'train': 'apis.training'}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = globals()[name] = getattr(importlib.import_module(f'{__name__}.{_MODULES[name]}'), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
