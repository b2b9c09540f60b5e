"""Helpers and fixtures shared by the tests."""

import functools
import gc
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import pytest
import torch
from mmengine.config import Config
from mmengine.config import utils as config_utils
from mmengine.logging import MessageHub, MMLogger
from mmengine.visualization import Visualizer
from torch import nn
from yapf.yapflib import yapf_api

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # `tools` is imported from the checkout

if 'PYTEST_XDIST_WORKER' in os.environ:
    torch.set_num_threads(1)  # the processes share the cores
_file2dict = getattr(Config, '_file2dict', None)


@functools.cache
def _parse(filename: str, *args, **kwargs) -> bytes:
    return pickle.dumps(_file2dict(filename, *args, **kwargs))


def _parse_once(filename: str, *args, **kwargs) -> tuple:
    """Parses a shipped config, or one of MMDetection's, once: MMEngine parses every base of every config anew."""
    filename = os.path.abspath(filename)
    if filename.startswith(f'{ROOT}/configs/') or '/.mim/configs/' in filename:
        return pickle.loads(_parse(filename, *args, **kwargs))
    return _file2dict(filename, *args, **kwargs)


if _file2dict:
    Config._file2dict = staticmethod(_parse_once)
if hasattr(config_utils, 'load'):  # MMEngine reads MMDetection's metafiles for each `mmdet::` base: 0.2 s every time
    config_utils.load = functools.cache(config_utils.load)
# MMEngine formats the whole config whenever it is logged, saved or written, which is half the time of a short training.
yapf_api.FormatCode = lambda text, **_: (text, True)

# What CPUs compute in half precision.
HALF_DTYPES = (torch.bfloat16, torch.float16) if torch.__version__ >= '2.3' else (torch.bfloat16,)
# Backbones with every kind of layer and a few thousand parameters: a PVT, a PVTv2, and a PVTv2 with linear SRA.
TINY_ARCH = dict(
    embed_dims=(8, 16, 24, 32),
    depths=(1, 2, 1, 1),
    num_heads=(1, 2, 3, 4),
    patch_sizes=(4, 2, 2, 2),
    sr_ratios=(8, 4, 2, 1),
    mlp_ratios=(2, 2, 2, 2),
)
TINY_ARCH_V2 = {'strides' if key == 'patch_sizes' else key: value for key, value in TINY_ARCH.items()}
TINY_ARCH_LINEAR = {**TINY_ARCH_V2, 'linear': True}


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Returns the maximum absolute difference divided by the maximum absolute value of ``theirs``."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def align_hugging_faces_eps(model: nn.Module) -> None:
    """Sets the reference's eps, which Hugging Face's PVT and PVTv2 do not have."""
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5 if 'patch_embedding' in name or 'attention' in name else 1e-6


@pytest.fixture(params=['PVT', 'PVTv2', 'PVTv2 with linear SRA'])
def build_backbone(request) -> Callable[..., nn.Module]:
    """Builds a small backbone, of each kind in turn, from the keywords of its class."""
    from pvt_mm.models.backbone import PVT, PVTv2  # MMEngine's functions are changed above

    kinds = {
        'PVT': (PVT, TINY_ARCH),
        'PVTv2': (PVTv2, TINY_ARCH_V2),
        'PVTv2 with linear SRA': (PVTv2, TINY_ARCH_LINEAR),
    }
    kind, arch = kinds[request.param]
    return functools.partial(kind, arch=arch)


@pytest.fixture(autouse=True)
def _reset():
    torch.manual_seed(0)
    forget_runs()


def forget_runs() -> None:
    """Forgets MMEngine's visualizers, loggers and messages, which it would share among the runs of a process.

    It knows loggers and messages by the config's name and the second of the start.
    """
    for kind in (Visualizer, *Visualizer.__subclasses__(), MMLogger, MessageHub):
        kind._instance_dict.clear()


@pytest.fixture(scope='module', autouse=True)
def _freeze_garbage():
    """MMEngine collects garbage whenever it builds a data set, which takes long with all that is imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope='session', autouse=True)
def _cache_folder(tmp_path_factory):
    """Leaves the user's cache alone, but for Matplotlib's list of fonts, which takes seconds."""
    os.environ['MPLCONFIGDIR'] = matplotlib.get_cachedir()
    os.environ['XDG_CACHE_HOME'] = str(tmp_path_factory.mktemp('cache'))


@pytest.fixture(scope='session')
def shapes(tmp_path_factory) -> Path:
    """A few generated images of 64 pixels, in all layouts; read only."""
    from pvt_mm.datasets.shapes import make_shapes  # imports MMCV, which tests of the backbone do without

    root = tmp_path_factory.mktemp('data') / 'shapes'
    make_shapes(root, image_size=64, train=12, val=6)
    return root
