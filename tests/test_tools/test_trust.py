"""No tool runs code in a checkpoint, except with --trust."""

import logging
import os
import pickle
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from pvt_mm.apis.config import load_config
from pvt_mm.checkpoint import reader
from pvt_mm.models import PVT
from tests.conftest import TINY_ARCH
from tools import attention, convert_checkpoint, demo, export_onnx, plot
from tools import test as test_tool
from tools import train as train_tool

CONFIG = """
default_scope = 'mmengine'
model = dict(
    type='pvt_mm.ImageClassifier',
    data_preprocessor=dict(type='pvt_mm.ClsDataPreprocessor', mean=[0, 0, 0], std=[255, 255, 255]),
    backbone=dict(type='pvt_mm.PVT', arch={arch}, pretrain_img_size=64, out_type='cls_token'),
    head=dict(type='pvt_mm.LinearClsHead', num_classes=3, in_channels=32),
)
pipeline = [dict(type='LoadImageFromFile'), dict(type='pvt_mm.PackInputs')]
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler'),
    dataset=dict(type='pvt_mm.ImageFolder', data_root='{data}', data_prefix='train', pipeline=pipeline),
)
test_dataloader = train_dataloader
train_cfg, test_cfg = dict(by_epoch=True, max_epochs=1), dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.0))
test_evaluator = dict(type='pvt_mm.Accuracy')
"""
START = 'model.backbone.init_cfg'
TOOLS = {
    'train, pre-trained': (
        train_tool,
        ['config.py', '--cfg-options', f'{START}.type=Pretrained', f'{START}.checkpoint=bad.pth'],
    ),
    'train, load_from': (train_tool, ['config.py', '--cfg-options', 'load_from=bad.pth']),
    'train, resume': (train_tool, ['config.py', '--resume', 'bad.pth']),
    'test': (test_tool, ['config.py', 'bad.pth']),
    'demo': (demo, ['IMAGE', 'config.py', 'bad.pth']),
    'attention': (attention, ['IMAGE', 'config.py', 'bad.pth', '--query', '1', '1']),
    'convert_checkpoint': (convert_checkpoint, ['bad.pth', 'out.pth']),
    'export_onnx': (export_onnx, ['config.py', 'bad.pth']),
    'plot predictions': (plot, ['predictions', 'config.py', 'bad.pth']),
}


class Malicious:
    """A pickle that runs a command when it is read in full."""

    def __reduce__(self):
        return os.system, ('touch canary',)


def plant(state: dict, path: str = 'bad.pth', protocol: int = 2) -> None:
    content = {'state_dict': state, 'meta': {}, 'message_hub': {}, 'optimizer': {}, 'x': Malicious()}
    torch.save(content, path, pickle_protocol=protocol)


@pytest.fixture
def state(tmp_path, monkeypatch, shapes) -> dict:
    """A config in the working directory, and the weights of its model."""
    monkeypatch.chdir(tmp_path)
    Path('config.py').write_text(CONFIG.format(arch=TINY_ARCH, data=shapes / 'classification'))
    with DefaultScope.overwrite_default_scope('mmengine'):
        return MODELS.build(load_config('config.py').model).state_dict()


@pytest.mark.parametrize('name', TOOLS)
def test_code_in_a_checkpoint_is_named_and_not_run(name, state, shapes, capsys):
    tool, arguments = TOOLS[name]
    image = str(next((shapes / 'val2017').iterdir()))
    plant(state)
    assert tool.main([image if argument == 'IMAGE' else argument for argument in arguments]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error:')]
    assert 'bad.pth is refused: it asks to run posix.system, which' in error
    assert error.endswith('; use --trust if you trust its author')
    assert not Path('canary').exists()


def test_code_in_a_trusted_checkpoint_is_run_for_one_call(state, monkeypatch, capsys):
    warnings = []
    monkeypatch.setattr(reader, 'print_log', lambda message, level, **_: warnings.append((level, message)))
    torch.save(state, 'good.pth')
    assert convert_checkpoint.main(['good.pth', 'out.pth', '--trust']) == 0
    assert warnings == []  # there was no need for it
    for protocol in (2, 4):
        path = f'bad{protocol}.pth'
        plant(state, path, protocol)
        assert convert_checkpoint.main([path, 'out.pth', '--trust']) == 0
        ((level, message),) = warnings
        assert (level, message.split(' (--trust)')[0]) == (logging.WARNING, f'{path} is read without the allow-list')
        assert 'posix.system' in message
        warnings.clear()
        Path('canary').unlink()
        assert convert_checkpoint.main([path, 'out.pth']) == 2
        assert 'posix.system' in capsys.readouterr().err
        assert not Path('canary').exists()


def test_a_bare_pickle_is_refused_and_not_a_checkpoint_even_if_trusted(state, capsys):
    Path('bad.pth').write_bytes(pickle.dumps(Malicious()))
    assert convert_checkpoint.main(['bad.pth', 'out.pth']) == 2
    assert 'bad.pth is refused: it asks to run posix.system, which' in capsys.readouterr().err
    assert not Path('canary').exists()
    assert convert_checkpoint.main(['bad.pth', 'out.pth', '--trust']) == 2
    assert 'bad.pth cannot be read: ' in capsys.readouterr().err


def test_trust_reaches_the_weights_that_training_starts_from(state):
    weights = PVT(TINY_ARCH, pretrain_img_size=64, out_type='cls_token').state_dict()
    plant(weights)
    tool, arguments = TOOLS['train, pre-trained']
    assert tool.main([*arguments, '--trust']) == 0
    assert Path('canary').exists()
    trained = reader.read_checkpoint('work_dirs/config/epoch_1.pth')
    assert torch.equal(trained['backbone.cls_token.token'], weights['cls_token.token'])
