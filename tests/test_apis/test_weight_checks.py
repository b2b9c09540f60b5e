"""What is found wrong with weights and checkpoints before a run starts."""

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModule
from torch import nn

from pvt_mm.apis import weight_checks
from pvt_mm.models import PVT
from pvt_mm.utils.errors import CheckpointError, InputError
from tests.conftest import TINY_ARCH


def test_initial_weights_that_are_missing(tmp_path, monkeypatch):
    def config(checkpoint: str) -> Config:
        return Config(dict(model=dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=checkpoint)))))

    message = r'model.backbone.init_cfg names gone.pth, which does not exist: .*init_cfg=None'
    with pytest.raises(InputError, match=message):
        weight_checks.check_init_weights(config('gone.pth'))
    (tmp_path / 'there.pth').touch()
    for fine in (str(tmp_path / 'there.pth'), 'https://example.com/a.pth'):
        weight_checks.check_init_weights(config(fine))
    weight_checks.check_init_weights(Config(dict(model=dict(backbone=dict(init_cfg=None)))))
    monkeypatch.setattr(weight_checks, 'find_spec', lambda name: None)
    with pytest.raises(InputError, match=r'names torchvision://resnet50, and torchvision is not installed'):
        weight_checks.check_init_weights(config('torchvision://resnet50'))
    monkeypatch.setattr(weight_checks, 'find_spec', lambda name: object())
    weight_checks.check_init_weights(config('torchvision://resnet50'))
    with pytest.raises(InputError, match=r"backbone.init_cfg is 'a.pth': it must be a dict; write --cfg-options"):
        weight_checks.check_init_weights(Config(dict(model=dict(backbone=dict(init_cfg='a.pth')))))


class Backbone(BaseModule):
    def __init__(self, checkpoint: str, **options):
        super().__init__(dict(type='Pretrained', checkpoint=checkpoint, **options))
        self.layers = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))


def test_initial_weights_of_another_model(tmp_path):
    path = str(tmp_path / 'a.pth')
    model = nn.Sequential(Backbone(path))
    weights = model[0].state_dict()
    for fitting in (weights, {**weights, 'head.weight': torch.zeros(2, 8)}):  # a classifier's
        torch.save({'state_dict': fitting}, path)
        weight_checks.check_pretrained(model)
    torch.save({f'backbone.{name}': value for name, value in weights.items()}, path)
    weight_checks.check_pretrained(Backbone(path, prefix='backbone'))
    message = r'a.pth has 1 of 4 parameters of Backbone: no layers.0.weight, layers.1.weight, layers.1.bias of'
    wrong = {'layers.0.bias': weights['layers.0.bias'], 'layers.0.weight': torch.zeros(3, 3), 'blocks': torch.zeros(1)}
    torch.save({'model': wrong}, path)
    with pytest.raises(CheckpointError, match=f'{message} that shape; its keys are layers.0.bias, layers.0.weight, bl'):
        weight_checks.check_pretrained(model)
    weight_checks.check_pretrained(
        PVT(TINY_ARCH, init_cfg=dict(type='Pretrained', checkpoint=path))
    )  # loads strictly itself


def test_checkpoints_of_another_model(tmp_path):
    model, path = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4)), str(tmp_path / 'a.pth')
    torch.save({'state_dict': {f'module.{name}': value for name, value in model.state_dict().items()}}, path)
    weights = weight_checks.check_checkpoint(model, path, strict=True)
    assert list(weights) == list(model.state_dict())
    torch.save({'state_dict': {**weights, '1.weight': torch.ones(5, 3)}}, path)
    weight_checks.check_checkpoint(model, path, strict=False)
    with pytest.raises(CheckpointError, match=r'does not match the model: 0 fits; 1: \(5, 3\), not \(4, 3\)'):
        weight_checks.check_checkpoint(model, path, strict=True)
    torch.save({'other': torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match='cannot start from it: it has 0 of 4 parameters of the model: 0: absent'):
        weight_checks.check_checkpoint(model, path, strict=False)
    with pytest.raises(CheckpointError, match=r'a.pth has no meta, message_hub, optimizer, so no run can resume'):
        weight_checks.check_resumable(path)


@pytest.mark.parametrize(
    ('changed', 'fault'),
    [
        ({'head.weight': torch.ones(7, 3), 'head.bias': torch.ones(7)}, None),
        ({'head.weight': None, 'head.bias': None}, None),
        ({'backbone.bias': torch.ones(7)}, r'it has 1 of 2 parameters of the backbone: .*backbone: \(7,\), not \(3,\)'),
        ({'backbone.weight': None}, 'it has 1 of 2 parameters of the backbone: .*backbone: missing'),
    ],
)
def test_training_starts_from_a_whole_backbone_with_any_head(changed, fault, tmp_path, monkeypatch):
    messages = []
    model, path = nn.ModuleDict(dict(backbone=nn.Linear(2, 3), head=nn.Linear(3, 4))), str(tmp_path / 'a.pth')
    weights = {**model.state_dict(), **changed}
    torch.save({'state_dict': {name: value for name, value in weights.items() if value is not None}}, path)
    if fault is None:
        monkeypatch.setattr(weight_checks, 'print_log', lambda message, logger: messages.append(message))
        weight_checks.check_checkpoint(model, path, strict=False)
        assert messages[0].startswith(
            f'{path}: loaded 2 of 4 parameters; randomly initialised: head.weight, head.bias (backbone fits; head: '
        )
        return
    with pytest.raises(CheckpointError, match=f'a.pth does not match the model, which cannot start from it: {fault}'):
        weight_checks.check_checkpoint(model, path, strict=False)


def test_ranks_that_are_not_connected_yet_download_once_a_machine(monkeypatch):
    """On GPUs MMEngine's runner connects them later, and the reader has no barrier before."""
    url, calls, connected = 'https://example.com/a.pth', [], []
    monkeypatch.setattr(weight_checks, 'on_each_machine', lambda function, *args: calls.append((function, *args)))
    monkeypatch.setattr(weight_checks, 'check_checkpoint', lambda model, path, strict: calls.append((path, strict)))
    monkeypatch.setattr(weight_checks, 'is_distributed', lambda: bool(connected))
    weight_checks.check_start(nn.Linear(1, 1), url)
    assert calls == [(weight_checks.read_file, url), (url, False)]
    connected.append(True)
    weight_checks.check_start(nn.Linear(1, 1), url)
    assert calls[2:] == [(url, False)]
