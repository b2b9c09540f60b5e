"""No tool runs what a checkpoint asks to run, unless it is told to trust it."""

import logging
import os
import pickle
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from pvt_mm import checkpoint as ckpt
from pvt_mm.engine.run import load_config
from pvt_mm.models.pvt import PVT
from tests.conftest import ROOT, TINY_ARCH
from tools import attention, convert_checkpoint, demo, export_onnx, plot
from tools import test as test_tool
from tools import train as train_tool

CONFIG = """
_base_ = '{root}/configs/demo/retinanet_shapes.py'
backbone = dict(arch=dict(_delete_=True, **{arch}), drop_path_rate=0.0)
model = dict(backbone=backbone, neck=dict(in_channels=[8, 16, 24, 32]))
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
"""
START = 'model.backbone.init_cfg'
TOOLS = {
    'train, pre-trained': (
        train_tool,
        ['config.py', '--cfg-options', 'DATA', f'{START}.type=Pretrained', f'{START}.checkpoint=bad.pth'],
    ),
    'train, load_from': (train_tool, ['config.py', '--cfg-options', 'DATA', 'load_from=bad.pth']),
    'train, resume': (train_tool, ['config.py', '--resume', 'bad.pth', '--cfg-options', 'DATA']),
    'test': (test_tool, ['config.py', 'bad.pth', '--cfg-options', 'DATA']),
    'demo': (demo, ['PICTURE', 'config.py', 'bad.pth']),
    'attention': (attention, ['PICTURE', 'config.py', 'bad.pth', '--query', '1', '1']),
    'convert_checkpoint': (convert_checkpoint, ['bad.pth', 'out.pth']),
    'export_onnx': (export_onnx, ['config.py', 'bad.pth']),
    'plot predictions': (plot, ['predictions', 'config.py', 'bad.pth', '--cfg-options', 'DATA']),
}


class Malicious:
    """A pickle that runs a command when it is read in full."""

    def __reduce__(self):
        return os.system, ('touch canary',)


def plant(kind: str, state: dict) -> None:
    content = {'state_dict': state, 'meta': {}, 'message_hub': {}, 'optimizer': {}, 'x': Malicious()}
    if kind == 'pickle':
        Path('bad.pth').write_bytes(pickle.dumps(content['x']))
    else:
        torch.save(content, 'bad.pth', pickle_protocol=int(kind[-1]))


@pytest.fixture
def state(tmp_path, monkeypatch) -> dict:
    """A config in the working directory, and the weights of its model."""
    monkeypatch.chdir(tmp_path)
    Path('config.py').write_text(CONFIG.format(root=ROOT, arch=TINY_ARCH))
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(load_config('config.py').model).state_dict()


@pytest.mark.parametrize('name', TOOLS)
def test_what_a_checkpoint_asks_to_run_is_named_and_not_run(name, state, shapes, capsys):
    tool, arguments = TOOLS[name]
    swap = {'DATA': f'data_root={shapes}', 'PICTURE': str(next((shapes / 'val2017').iterdir()))}
    arguments = [swap.get(argument, argument) for argument in arguments]
    for kind in ('protocol 2', 'protocol 4', 'pickle'):
        plant(kind, state)
        capsys.readouterr()
        assert tool.main(arguments) == 2
        (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error:')]
        assert 'bad.pth is refused: it asks to run ' in error
        assert 'posix.system' in error
        assert error.endswith('; use --trust if you trust who made the file')
        assert not Path('canary').exists()


def test_a_trusted_checkpoint_runs_what_it_asks_for(state, monkeypatch, capsys):
    warnings = []
    monkeypatch.setattr(ckpt, 'print_log', lambda message, level, **_: warnings.append((level, message)))
    torch.save(state, 'good.pth')
    assert convert_checkpoint.main(['good.pth', 'out.pth', '--trust']) == 0
    assert warnings == []  # there was no need for it
    for kind in ('protocol 2', 'protocol 4'):
        plant(kind, state)
        assert convert_checkpoint.main(['bad.pth', 'out.pth', '--trust']) == 0
        ((level, message),) = warnings
        assert (level, message.split(' as ')[0]) == (logging.WARNING, 'bad.pth is read without the allow-list,')
        assert 'posix.system' in message
        warnings.clear()
        Path('canary').unlink()
        assert convert_checkpoint.main(['bad.pth', 'out.pth']) == 2  # it is for one call
        assert not Path('canary').exists()
    plant('pickle', state)
    assert convert_checkpoint.main(['bad.pth', 'out.pth', '--trust']) == 2
    assert 'bad.pth cannot be read: ' in capsys.readouterr().err


def test_trust_reaches_the_weights_that_training_starts_from(state, shapes):
    plant('protocol 2', PVT(TINY_ARCH).state_dict())
    _, arguments = TOOLS['train, pre-trained']
    arguments = [argument.replace('DATA', f'data_root={shapes}') for argument in arguments]
    assert train_tool.main([*arguments, 'train_cfg.max_epochs=0', '--trust']) == 0
    assert Path('canary').exists()
