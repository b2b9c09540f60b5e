"""An iteration with NaN/Inf is repeated as it was, and the tool shows where NaN/Inf starts."""

import json
import math
import shlex

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from pvt_mm.apis.replay import Watch
from pvt_mm.checkpoint.reader import read_file
from tests.crash.tasks import write_task
from tools import replay as replay_tool
from tools import train as train_tool


@HOOKS.register_module()
class BadWeight(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 3:
            runner.model.bbox_head.retina_cls.weight.data[0, 0] = math.inf


def test_the_command_that_training_prints_repeats_the_iteration(shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base = write_task('retinanet', tmp_path, shapes, epochs=1, workers=1)  # random sizes, colours, dropout, ...
    (tmp_path / 'faulty.py').write_text(f"_base_ = '{base.name}'\ncustom_hooks = [dict(type='BadWeight')]\n")
    assert train_tool.main(['faulty.py', '--work-dir', 'the run']) == 2
    (message,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith('error: '))
    assert message.startswith('error: iteration 4: loss ')
    tool, *arguments = shlex.split(message.split(': ')[-1])
    names = ('faulty.py', 'nonfinite_iter_4.pth')
    assert (tool, arguments) == ('tools/replay.py', [str(tmp_path / 'the run' / name) for name in names])

    assert replay_tool.main(arguments) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
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
        (['train_dataloader.dataset.indices=1'], 'batch 3 of epoch 0 is not what it was'),
        (['model.bbox_head.num_classes=2'], 'does not match the model'),
        (['train_dataloader.dataset.data_root=gone/'], 'the training data cannot be built'),
    ):
        assert replay_tool.main([*arguments, '--cfg-options', *more]) == 2
        assert reason in capsys.readouterr().err
    torch.save({'state_dict': {}}, 'weights.pth')
    assert replay_tool.main([arguments[0], 'weights.pth']) == 2
    assert 'weights.pth has no seed, rank, world_size, loss_scale, batches: give the' in capsys.readouterr().err


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
        (SquareRoot(), None, 'the output of 1'),  # whose slope at 0 is infinite
        (Logarithm(), ('2.inner', 'input'), '2.inner.weight'),
    ],
)
def test_functions_between_modules_are_found(last, value, gradient):
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU(inplace=True), last)
    with Watch(model) as watch:
        found = model(torch.randn(4, 3))
        (found if value is None else found['found'][0]).sum().backward()
    assert (watch.value and (watch.value.module, watch.value.what)) == value
    assert watch.gradient == gradient
