"""What a resumed run keeps and takes, and the schedule that --new-schedule gives it."""

import copy
import logging
import os
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import nn

from pvt_mm.apis import resuming
from pvt_mm.apis.resuming import read_settings, report_changes
from pvt_mm.engine.hooks.new_schedule_hook import advance
from pvt_mm.utils.errors import InputError
from tests.conftest import forget_runs

STEP = dict(type='MultiStepLR', begin=0, end=4, by_epoch=True, milestones=[2, 3], gamma=0.1)
WARM_UP = dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=4)


class Line(BaseModel):
    """A model of one weight."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x, mode='tensor'):
        return dict(loss=self.layer(torch.stack(list(x))).square().mean())


def settings(folder: Path, epochs: int, schedule: list, lr: float = 1.0, **more) -> Config:
    wrapper = dict(optimizer=dict(type='SGD', lr=lr, momentum=0.9))
    loop = dict(type='pvt_mm.EpochBasedTrainLoop', max_epochs=epochs)
    hooks = dict(checkpoint=dict(type='pvt_mm.CheckpointHook', interval=1), logger=None)
    config = dict(
        work_dir=str(folder), optim_wrapper=wrapper, param_scheduler=schedule, train_cfg=loop, custom_hooks=[]
    )
    return Config(config | dict(default_hooks=hooks, randomness=dict(seed=1)) | more)


def train(config: Config, checkpoint: Path | None = None) -> list[float]:
    """Trains on 6 batches an epoch, from a checkpoint if it is given, and returns the learning rate of each step."""
    rates = []
    forget_runs()
    data = torch.arange(6.0).reshape(6, 1)
    loader = dict(batch_size=1, dataset=data, sampler=dict(type='DefaultSampler', shuffle=False), num_workers=0)
    with DefaultScope.overwrite_default_scope('mmengine'):
        runner = Runner(
            Line(),
            cfg=copy.deepcopy(config),
            train_dataloader=loader,
            resume=checkpoint is not None,
            load_from=checkpoint and str(checkpoint),
            experiment_name=f'{config.work_dir}{os.urandom(4).hex()}',
            log_level='ERROR',
            **{name: value for name, value in copy.deepcopy(config).items() if name not in ('launcher', 'load_from')},
        )
        step = runner.model.train_step

        def train_step(*args, **kwargs):
            rates.extend(runner.optim_wrapper.get_lr()['lr'])
            return step(*args, **kwargs)

        runner.model.train_step = train_step
        runner.train()
    return rates


@pytest.fixture
def logged(monkeypatch) -> list[tuple[int, str]]:
    lines = []
    monkeypatch.setattr(resuming, 'print_log', lambda text, logger, level: lines.append((level, text)))
    return lines


def test_a_config_is_read_without_running_it(tmp_path):
    text = f"""
a = 1
b = dict(c=[1, (2, 'x')], d={{'e-f': None, 'g': -1e-3}})
hooks = [dict(type='A', n=1), dict(type='B')]
code = open({str(tmp_path / 'written')!r}, 'w')
empty = dict()
"""
    code = f"open('{tmp_path / 'written'}', 'w')"
    expected = {'a': 1, 'b.c': [1, [2, 'x']], 'b.d.e-f': None, 'b.d.g': -1e-3, 'code': code, 'empty': {}}
    expected |= {'hooks.0.type': 'A', 'hooks.0.n': 1, 'hooks.1.type': 'B'}
    assert read_settings(text) == expected
    assert not (tmp_path / 'written').exists()
    assert read_settings('not python') == {}


def test_what_is_kept_and_what_is_taken(tmp_path, logged):
    before = settings(tmp_path, 2, [WARM_UP, STEP])
    train(before)
    path = str(tmp_path / 'epoch_2.pth')
    report_changes(settings(tmp_path, 2, [WARM_UP, STEP], load_from=path, resume=True), path)
    assert logged == []

    longer = settings(tmp_path, 8, [WARM_UP, STEP | dict(milestones=[5, 7], end=8)], lr=0.5)
    report_changes(longer, path)
    (level, ignored), (_, taken) = logged
    assert level == logging.WARNING
    assert ignored.startswith('resuming after epoch 2, step 12: what has changed in the config here is ignored')
    for line in (
        'optim_wrapper.optimizer.lr 1.0 (not 0.5)',
        'param_scheduler.1.milestones [2, 3] (not [5, 7])',
        'param_scheduler.1.end 4 (not 8)',
        'add --new-schedule',
        f'use --cfg-options load_from={path} without --resume',
    ):
        assert line in ignored
    assert taken == 'resuming after epoch 2, step 12: taken from the config: train_cfg.max_epochs 8 (before: 2)'

    logged.clear()
    longer.custom_hooks = [dict(type='pvt_mm.NewScheduleHook')]
    report_changes(longer, path)
    assert [line.partition(':')[0] for _, line in logged] == [
        'resuming after epoch 2, step 12, with the settings of the optimizer and the schedule of the config',
        'resuming after epoch 2, step 12',
    ]


def test_a_schedule_that_has_ended_is_said(tmp_path, logged):
    train(settings(tmp_path, 4, [STEP]))
    report_changes(settings(tmp_path, 8, [STEP]), str(tmp_path / 'epoch_4.pth'))
    level, ended = logged[-1]
    assert level == logging.WARNING
    assert 'the learning rate stays 0.01 for the epochs 5 to 8; --new-schedule takes the schedule of' in ended


def test_an_optimizer_that_cannot_continue(tmp_path, monkeypatch):
    train(settings(tmp_path, 1, [STEP]))
    path, other = str(tmp_path / 'epoch_1.pth'), settings(tmp_path, 2, [STEP])
    other.optim_wrapper.optimizer.type = 'Adam'
    with pytest.raises(InputError, match=r'has the state of SGD, and the optimizer is Adam: to start a new run from'):
        report_changes(other, path)
    content = resuming.read_file(path)
    content['optimizer']['param_groups'][0]['fused'] = True
    monkeypatch.setattr(resuming, 'read_file', lambda _: content)
    monkeypatch.setattr(torch, '__version__', '2.3.1')
    with pytest.raises(InputError, match=r'is fused, which PyTorch 2.3.1 has on GPUs only: set .*fused=False'):
        report_changes(settings(tmp_path, 2, [STEP]), path)


@pytest.mark.parametrize('schedule', [
    [WARM_UP, STEP | dict(milestones=[4, 6], end=8)],
    [WARM_UP | dict(end=20), dict(type='CosineAnnealingLR', by_epoch=False, begin=20, end=48, T_max=28)],
    [dict(type='PolyLR', by_epoch=True, begin=0, end=8, convert_to_iter_based=True)],
])  # fmt: skip
@pytest.mark.parametrize('stopped', [False, True], ids=['after an epoch', 'within an epoch'])
def test_a_new_schedule_continues_as_if_it_had_always_been(schedule, stopped, tmp_path):
    """The learning rates are those of a run that had the longer schedule from the start."""
    expected = train(settings(tmp_path / 'whole', 8, schedule, lr=0.5))
    old = settings(tmp_path / 'part', 3, [STEP])
    if stopped:
        old.default_hooks.checkpoint.update(by_epoch=False, interval=16)
    train(old)
    path, done = (tmp_path / 'part' / 'iter_16.pth', 16) if stopped else (tmp_path / 'part' / 'epoch_3.pth', 18)
    new = settings(tmp_path / 'new', 8, schedule, lr=0.5, custom_hooks=[dict(type='pvt_mm.NewScheduleHook')])
    assert train(new, path) == pytest.approx(expected[done:])
    kept = train(settings(tmp_path / 'kept', 8, schedule, lr=0.5), path)
    assert kept[-1] != pytest.approx(expected[-1])


def test_schedules_are_stepped_as_in_training_up_to_the_middle_of_an_epoch():
    """After 2 epochs of 6 steps and 4 steps of the third."""
    steps = []

    class Scheduler:
        def __init__(self, by_epoch: bool):
            self.by_epoch = by_epoch

        def step(self):
            steps.append('E' if self.by_epoch else '.')

    checkpoint = dict(meta=dict(epoch=2, iter=16), message_hub=dict(runtime_info=dict(epoch_began=(2, 12))))
    advance([Scheduler(True), Scheduler(False)], checkpoint)
    assert ''.join(steps) == '......E......E....'
