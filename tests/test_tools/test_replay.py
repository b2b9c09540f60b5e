"""An iteration that was not finite is done again as it was, and shown where it begins."""

import json
import math
import shlex

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from pvt_mm.checkpoint import read_file
from pvt_mm.engine.replay import Watch
from tests.conftest import ROOT, TINY_ARCH, forget_visualizers
from tests.test_tools.test_train_and_test import CONFIG, options
from tools import replay as replay_tool
from tools import train as train_tool

FAULTY = """
_base_ = 'small.py'
custom_hooks = [dict(type='{hook}')]
"""
BY_CHANCE = ['train_dataloader.dataset.pipeline.3.prob=0.5', 'model.backbone.drop_path_rate=0.5']


@HOOKS.register_module()
class BadWeight(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 3:
            runner.model.bbox_head.retina_cls.weight.data[0, 0] = math.inf


@HOOKS.register_module()
class BadGradient(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 3:
            runner.model.bbox_head.retina_reg.bias.register_hook(lambda gradient: gradient * math.nan)


@pytest.fixture
def stopped(shapes, tmp_path, monkeypatch, capsys):
    """Trains until a hook stops it at the fourth iteration, and returns the message."""
    monkeypatch.chdir(tmp_path)

    def train(hook: str) -> str:
        forget_visualizers()
        (tmp_path / 'small.py').write_text(CONFIG.format(root=ROOT, arch=TINY_ARCH))
        (tmp_path / 'faulty.py').write_text(FAULTY.format(hook=hook))
        more = options(shapes, *BY_CHANCE, 'train_dataloader.num_workers=1')
        assert train_tool.main(['faulty.py', '--work-dir', 'the run', '--seed', '5', *more]) == 2
        lines = capsys.readouterr().err.splitlines()
        (message,) = (line for line in lines if line.startswith('error: '))
        return message

    return train


def last_line(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_fault_is_reproduced_by_the_command_that_training_prints(stopped, tmp_path, capsys):
    message = stopped('BadWeight')
    assert message.startswith('error: iteration 4: loss ')
    tool, *arguments = shlex.split(message.split(': ')[-1])
    names = ('faulty.py', 'nonfinite_iter_4.pth')
    assert (tool, arguments) == ('tools/replay.py', [str(tmp_path / 'the run' / name) for name in names])
    assert replay_tool.main(arguments) == 0
    found = last_line(capsys)
    assert found['reproduced'] is True
    assert found['first_value']['module'] == 'bbox_head.retina_cls'
    assert found['first_value']['what'] == 'output'
    assert found['first_value']['parameters'] == ['bbox_head.retina_cls.weight']
    assert -100 < found['first_value']['low'] < found['first_value']['high'] < 100
    assert found['gradients']['bad'] > 10
    (batch,) = read_file(arguments[1])['batches']
    assert found['images'] == batch['images']
    assert len(batch['images']) == 2
    assert all(image['path'] in message and f'(id {image["id"]})' in message for image in batch['images'])
    assert found['losses'][0]['loss_bbox'] == pytest.approx(batch['losses']['loss_bbox'], rel=1e-6)

    for more, reason in (
        (['train_dataloader.batch_size=3'], 'batch 3 of epoch 0 is not what it was'),
        (['train_dataloader.batch_size=12'], 'epoch 0 has no batch 3'),
        (['model.bbox_head.num_classes=2'], 'is of another model'),
        (['train_dataloader.dataset.data_root=gone/'], 'the training data cannot be built'),
    ):
        assert replay_tool.main([*arguments, '--cfg-options', *more]) == 2
        assert reason in capsys.readouterr().err
    torch.save({'state_dict': {}}, 'weights.pth')
    assert replay_tool.main([arguments[0], 'weights.pth']) == 2
    assert 'weights.pth has no seed, rank, world_size, loss_scale, batches: give the' in capsys.readouterr().err


def test_what_is_finite_this_time_says_so(stopped, capsys):
    message = stopped('BadGradient')
    assert '1 of ' in message
    assert 'gradients are not finite, the first of bbox_head.retina_reg.bias; ' in message
    assert replay_tool.main(shlex.split(message.split(': ')[-1])[1:]) == 1
    found = last_line(capsys)
    assert found['reproduced'] is False
    assert found['first_value'] is None
    assert found['first_gradient'] is None
    assert found['gradients']['bad'] == 0
    (batch,) = read_file('the run/nonfinite_iter_4.pth')['batches']
    assert found['losses'][0] == pytest.approx(batch['losses'], rel=1e-6)


class SquareRoot(torch.nn.Module):
    def forward(self, x):
        return x.mul(0).sqrt()


class Logarithm(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(3, 3)

    def forward(self, x):
        return {'found': [self.inner((x - 10).log())]}


@pytest.mark.parametrize(
    ('last', 'value', 'gradient'),
    [
        (SquareRoot(), None, 'the output of 1'),  # of an infinite slope at 0
        (Logarithm(), ('2.inner', 'input'), '2.inner.weight'),
    ],
)
def test_functions_are_found_between_modules(last, value, gradient):
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU(inplace=True), last)
    with Watch(model) as watch:
        found = model(torch.randn(4, 3))
        (found if value is None else found['found'][0]).sum().backward()
    assert (watch.value and (watch.value.module, watch.value.what)) == value
    assert watch.gradient == gradient
