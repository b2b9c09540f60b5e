"""The length of a training, its batch, and the learning rate that goes with it."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS

from pvt_mm.apis import schedule
from pvt_mm.utils.errors import InputError
from tests.conftest import ROOT


def read(name: str) -> Config:
    return Config.fromfile(ROOT / f'configs/{name}.py')


def rates(config: Config, steps: int) -> list[float]:
    """Returns the learning rate of each step, as MMEngine's schedulers set it, over the base rate."""
    wrapper = build_optim_wrapper(torch.nn.Linear(1, 1), dict(optimizer=dict(type='SGD', lr=1.0)))
    by_epoch = 'max_epochs' in config.train_cfg
    epochs = config.train_cfg.max_epochs if by_epoch else 1
    schedulers = [
        PARAM_SCHEDULERS.build(copy.deepcopy(part), default_args=dict(optimizer=wrapper, epoch_length=steps))
        for part in config.param_scheduler
    ]
    found = []
    for _ in range(epochs):
        for _ in range(steps if by_epoch else config.train_cfg.max_iters):
            found.append(wrapper.get_lr()['lr'][0])
            wrapper.optimizer.step()
            for scheduler in schedulers:
                if not scheduler.by_epoch:
                    scheduler.step()
        for scheduler in schedulers:
            if scheduler.by_epoch:
                scheduler.step()
    return found


DECAYS = {  # the first epoch, or step of 100 an epoch, of each decay: 8 and 11 of 12 epochs
    1: (67, 92),
    2: (133, 183),
    3: (200, 275),
    4: (267, 367),
    5: (333, 458),
    6: (400, 550),
    7: (500, 600),
    8: (500, 700),
    9: (600, 800),
    10: (700, 900),
    11: (700, 1000),
    12: (800, 1100),
    24: (1600, 2200),
}


@pytest.mark.parametrize('epochs', DECAYS)
def test_epochs_keep_the_place_of_milestones_and_shorten_the_warm_up(epochs):
    config = read('retinanet/pvt_s_1x')
    schedule.use_epochs(config, epochs, 100)
    schedule.fit_schedule(config, 100)
    assert config.train_cfg.max_epochs == epochs
    warm = min(500, 10 * epochs)  # a tenth at most
    assert config.param_scheduler[0].end == warm
    found, (first, second) = rates(config, 100), DECAYS[epochs]
    assert found[0] == pytest.approx(0.001)
    assert found[warm:first] == pytest.approx([1.0] * (first - warm))
    assert found[first:second] == pytest.approx([0.1] * (second - first))
    assert found[second:] == pytest.approx([0.01] * (100 * epochs - second))


@pytest.mark.parametrize(('steps', 'epochs', 'milestones'), [(1, 4, [2, 3]), (1, 3, [1, 2]), (2, 1, [1])])
def test_milestones_of_a_few_steps_stay_before_the_end(steps, epochs, milestones):
    config = read('retinanet/pvt_s_1x')
    schedule.use_epochs(config, epochs, steps)
    assert config.param_scheduler[-1].milestones == milestones


@pytest.mark.parametrize('epochs', [1, 2, 3, 10, 60])
def test_a_cosine_after_a_warm_up_fills_any_number_of_epochs(epochs):
    config = read('classification/pvt_s_300e')
    schedule.use_epochs(config, epochs, 20)
    schedule.fit_schedule(config, 20)
    found = rates(config, 20)
    assert len(found) == 20 * epochs
    warm = min(100, 2 * epochs)
    assert found.index(max(found)) == pytest.approx(warm, abs=2)
    assert max(found) == pytest.approx(1, rel=0.02)
    assert found[-1] < 0.1 if epochs > 1 else found[-1] < 0.2
    assert found[warm + 1 :] == sorted(found[warm + 1 :], reverse=True)
    assert config.default_hooks.logger.interval == 5  # four lines an epoch


def test_a_warm_up_of_one_step_would_stay_at_its_start():
    config = read('retinanet/pvt_s_1x')
    schedule.use_epochs(config, 2, 3)
    assert rates(config, 3)[0] == 1.0
    assert [part.type for part in config.param_scheduler] == ['MultiStepLR']


def test_iterations_follow_epochs_with_their_intervals():
    config = read('semantic_fpn/pvt_s_80k')
    schedule.use_epochs(config, 40, 25)
    assert (config.train_cfg.max_iters, config.train_cfg.val_interval) == (1000, 100)
    assert config.default_hooks.checkpoint.interval == 100
    assert config.param_scheduler[0].end == 1000
    schedule.use_epochs(config, 1, 25)
    assert config.train_cfg.val_interval == 25  # one evaluation an epoch at most
    schedule.fit_schedule(config, 25)
    assert config.default_hooks.logger.interval == 6  # a quarter of this training
    assert rates(config, 25)[-1] < 0.1


def test_hooks_that_wait_for_an_epoch_come_in_proportion():
    config = read('retinanet/pvt_s_1x')
    config.train_cfg.update(max_epochs=300, val_interval=10, dynamic_intervals=[(280, 1)])
    config.custom_hooks = [
        dict(type='PipelineSwitchHook', switch_epoch=280),
        dict(type='YOLOXModeSwitchHook', num_last_epochs=15),
    ]
    schedule.use_epochs(config, 30, 5)
    assert config.train_cfg.dynamic_intervals == [(28, 1)]
    assert [hook.get('switch_epoch', hook.get('num_last_epochs')) for hook in config.custom_hooks] == [28, 2]


@pytest.mark.parametrize(
    ('optimizer', 'batch', 'processes', 'counts', 'factor'),
    [
        ('SGD', 2, 1, 1, 1 / 8),
        ('SGD', 2, 2, 4, 1),
        ('AdamW', 1, 1, 1, 1 / 4),
        ('AdamW', 1, 4, 1, 1 / 2),
        ('AdamW', 8, 8, 1, 2),
        ('Lion', 4, 1, 1, 1 / 2),
    ],
)
def test_the_rate_is_scaled_linearly_for_sgd_and_by_the_square_root_for_others(
    optimizer, batch, processes, counts, factor
):
    config = read('retinanet/pvt_s_1x')
    config.optim_wrapper = dict(optimizer=dict(type=optimizer, lr=0.02), accumulative_counts=counts)
    config.param_scheduler = [dict(type='CosineAnnealingLR', eta_min=1e-3)]
    config.train_dataloader.batch_size = batch
    line = schedule.scale_lr_to_batch(config, processes)
    assert config.optim_wrapper.optimizer.lr == pytest.approx(0.02 * factor, rel=1e-3)
    assert config.param_scheduler[0].eta_min == pytest.approx(1e-3 * factor)
    assert config.auto_scale_lr == dict(enable=False, base_batch_size=batch * processes * counts)
    if factor == 1:
        assert line == 'the learning rate 0.02 is for a batch of 16, as it is here'
    else:
        how = 'the ratio' if optimizer == 'SGD' else 'the square root of the ratio'
        assert f'0.02, which is for a batch of 16, times {factor:.3g} ' in line
        assert f'for the batch of {batch * processes * counts} here ({how}' in line
        assert '--no-scale-lr keeps it' in line


def test_a_rate_whose_batch_is_unknown_stays():
    config = read('retinanet/pvt_s_1x')
    config.pop('auto_scale_lr')
    line = schedule.scale_lr_to_batch(config, 1)
    assert line.endswith('as the config has no auto_scale_lr.base_batch_size')
    assert config.optim_wrapper.optimizer.lr == 1e-4


def test_small_data_lowers_the_batch_and_workers_leave_cores_to_others(monkeypatch):
    config = read('classification/pvt_s_300e')
    assert schedule.fit_batch(config, 1024, 8) is None
    line = schedule.fit_batch(config, 30, 4)
    assert config.train_dataloader.batch_size == 7
    assert line == 'the batch is 7 images and not 128, as there are 30 for training'
    with pytest.raises(InputError, match='3 images, fewer than the 4 processes'):
        schedule.fit_batch(config, 3, 4)
    monkeypatch.setattr(schedule.os, 'sched_getaffinity', lambda _: range(12), raising=False)
    schedule.fit_loading(config, 4)
    assert config.train_dataloader.num_workers == config.val_dataloader.num_workers == 3
    schedule.without_workers(config)
    assert config.train_dataloader.persistent_workers
    config.train_dataloader.update(num_workers=0, prefetch_factor=2)
    schedule.without_workers(config)
    assert not config.train_dataloader.persistent_workers
    assert 'prefetch_factor' not in config.train_dataloader


def test_a_batch_is_that_of_evaluations_too_if_theirs_is_larger():
    config = read('classification/pvt_s_300e')
    schedule.use_batch(config, 16)
    loaders = (config.train_dataloader, config.val_dataloader, config.test_dataloader)
    assert [loader.batch_size for loader in loaders] == [16] * 3
    detector = read('retinanet/pvt_s_1x')
    schedule.use_batch(detector, 4)
    assert detector.val_dataloader.batch_size == 1
    del detector.train_dataloader['batch_size']
    with pytest.raises(InputError, match=r'--batch: the config has no train_dataloader.batch_size'):
        schedule.use_batch(detector, 4)


@pytest.mark.parametrize('value', [0, -1, 1.5, True, 'two'])
def test_counts_are_whole_numbers_from_1(value):
    with pytest.raises(InputError, match=rf'--epochs {value}: it must be a whole number from 1'):
        schedule.check_count('--epochs', value)
