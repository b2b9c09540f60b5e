"""What cannot be deterministic on a GPU is said before training."""

import pytest
import torch
from mmcv.ops import RoIAlign
from mmdet.models.layers import SinePositionalEncoding
from mmdet.models.losses import CrossEntropyLoss
from mmseg.models.losses import CrossEntropyLoss as PixelCrossEntropyLoss
from mmseg.models.losses import LovaszLoss
from torch import nn

from pvt_mm.engine import randomness
from pvt_mm.engine.randomness import check_deterministic
from pvt_mm.utils.errors import InputError


@pytest.fixture(params=[True, False])
def deterministic(request, monkeypatch) -> bool:
    """Whether deterministic algorithms are on; there is a GPU."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    torch.use_deterministic_algorithms(request.param)
    yield request.param
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ('module', 'function'),
    [
        (SinePositionalEncoding(8), 'cumsum'),
        (LovaszLoss(reduction='none'), 'cumsum'),
        (PixelCrossEntropyLoss(), 'nll_loss2d'),
    ],
)
def test_a_function_without_a_deterministic_algorithm_is_refused(module, function, deterministic, monkeypatch):
    model = nn.ModuleDict({'conv': nn.Conv2d(3, 8, 1), 'head': nn.Sequential(module)})
    if deterministic:
        message = rf'^--deterministic: head\.0 \({type(module).__name__}\) needs {function}, for which PyTorch has no'
        with pytest.raises(InputError, match=message):
            check_deterministic(model)
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    check_deterministic(model)


def test_operators_of_mmcv_are_warned_of(deterministic, monkeypatch):
    printed = []
    monkeypatch.setattr(randomness, 'print_log', lambda text, **kwargs: printed.append(text))
    check_deterministic(nn.Sequential(RoIAlign(7), CrossEntropyLoss(), nn.Linear(2, 2)))
    assert len(printed) == deterministic
    assert all('the gradients of RoIAlign from mmcv may differ in the last bits' in text for text in printed)
