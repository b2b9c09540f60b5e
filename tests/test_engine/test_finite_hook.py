"""NaN/Inf stops training before the step or skips it, changes nothing, and is reported and saved."""

import functools
import json
import math
import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import DATASETS, HOOKS, MODELS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn

from pvt_mm.checkpoint.reader import read_file
from pvt_mm.engine.hooks.finite_hook import NonFiniteError
from tests.conftest import forget_runs
from tools import replay as replay_tool


@DATASETS.register_module()
class Points(torch.utils.data.Dataset):
    """Samples of four numbers. Those in ``spoiled`` have a NaN; the loss of those in ``cut`` is NaN, and its gradients
    are finite."""

    metainfo = {}  # noqa: RUF012

    def __init__(self, size: int = 12, spoiled: tuple = (), cut: tuple = ()):
        self.size, self.spoiled, self.cut = size, spoiled, cut

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        inputs = torch.randn(4, generator=generator) + 0.1 * torch.randn(4)
        if index in self.spoiled:
            inputs[1] = math.nan
        metainfo = dict(img_path=f'{index}.jpg', img_id=index, cut=index in self.cut)
        return dict(inputs=inputs, data_samples=BaseDataElement(metainfo=metainfo))


@MODELS.register_module()
class Regressor(BaseModel):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)

    def forward(self, inputs, data_samples, mode):
        found = self.last(self.norm(self.first(torch.stack(inputs))))
        cut = torch.tensor([math.nan if sample.cut else 0.0 for sample in data_samples])
        return dict(loss_square=found.square().mean(), loss_cut=cut.sum(), greatest=found.abs().max())


@HOOKS.register_module()
class Plant(Hook):
    """Adds a number to the gradient of ``last.weight`` in some iterations, counted from 1."""

    def __init__(self, iterations: tuple, value: float = math.nan):
        self.iterations, self.value = iterations, value

    def before_train(self, runner):
        model = getattr(runner.model, 'module', runner.model)
        model.last.weight.register_hook(
            lambda gradient: gradient + self.value if runner.iter + 1 in self.iterations else gradient
        )


def config_of(work_dir, max_skips=0, plant=None, dataset=None, **wrapper) -> Config:
    return Config(
        dict(
            model=dict(type='Regressor'),
            work_dir=str(work_dir),
            train_dataloader=dict(
                dataset=dict(type='Points', **(dataset or {})),
                sampler=dict(type='DefaultSampler', shuffle=False),
                batch_size=2,
                num_workers=0,
            ),
            train_cfg=dict(type='pvt_mm.EpochBasedTrainLoop', max_epochs=1),
            optim_wrapper={
                'type': 'OptimWrapper',
                'optimizer': dict(type='SGD', lr=0.1, momentum=0.9),
                'clip_grad': dict(max_norm=1.0),
                **wrapper,
            },
            param_scheduler=[dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=9)],
            default_hooks=dict(
                finite=dict(type='pvt_mm.FiniteHook', max_skips=max_skips),
                checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1),
                logger=dict(type='LoggerHook', interval=1),
            ),
            custom_hooks=[dict(type='Plant', **plant)] if plant else [],
            randomness=dict(seed=3),
            default_scope='mmengine',
            experiment_name=Path(work_dir).name,
        )
    )


def train(config: Config) -> Runner:
    forget_runs()
    runner = Runner.from_cfg(config)
    runner.train()
    return runner


def momenta(checkpoint: dict) -> dict:
    return {number: state['momentum_buffer'] for number, state in checkpoint['optimizer']['state'].items()}


def same(ours: dict, theirs: dict) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_nan_gradient_stops_training_and_changes_nothing(tmp_path):
    with pytest.raises(NonFiniteError) as error:
        train(config_of(tmp_path, plant=dict(iterations=(4,))))
    message = str(error.value)
    assert message.startswith('iteration 4: loss 0.')
    assert ', NaN/Inf in 1 of 6 gradients: last.weight; images 6.jpg (id 6), 7.jpg (id 7). ' in message
    assert message.endswith(f' {tmp_path}/nonfinite_iter_4.pth')
    assert (tmp_path / 'last_checkpoint').read_text().endswith('iter_3.pth')
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == [
        *(f'iter_{i}.pth' for i in (1, 2, 3)),
        'nonfinite_iter_4.pth',
    ]
    record = read_file(tmp_path / 'nonfinite_iter_4.pth')
    assert same(record['state_dict'], read_file(tmp_path / 'iter_3.pth')['state_dict'])
    assert (record['seed'], record['rank'], record['world_size'], record['loss_scale']) == (3, 0, 1, 1.0)
    (batch,) = record['batches']
    assert {name: batch[name] for name in ('iter', 'epoch', 'number')} == dict(iter=3, epoch=0, number=3)
    assert batch['images'] == [dict(path='6.jpg', id=6), dict(path='7.jpg', id=7)]
    assert batch['indices'] == [6, 7]
    assert set(batch['losses']) == {'loss', 'loss_square', 'loss_cut', 'greatest'}


def test_a_nan_loss_names_its_parts(tmp_path):
    with pytest.raises(
        NonFiniteError, match=r'iteration 2: loss nan \(loss_cut nan\), NaN/Inf in 0 of 6 gradients; images'
    ):
        train(config_of(tmp_path, dataset=dict(cut=(3,))))


def test_skipped_steps_change_nothing(tmp_path):
    config = config_of(tmp_path, max_skips=2, dataset=dict(spoiled=(4, 6)), plant=dict(iterations=(6,)))
    runner = train(config)  # 3 and 4, and after a good one 6
    before, *after = (read_file(tmp_path / f'iter_{i}.pth') for i in (2, 3, 4, 5, 6))
    for content in after[:2]:
        assert same(content['state_dict'], before['state_dict'])  # BatchNorm's statistics too
        assert same(momenta(content), momenta(before))
    assert same(after[3]['state_dict'], after[2]['state_dict'])
    assert not same(after[2]['state_dict'], before['state_dict'])
    rates = [content['param_schedulers'][0]['last_step'] for content in (before, *after)]
    assert rates == [2, 3, 4, 5, 6]
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert ': first.weight, first.bias, norm.weight, norm.bias, last.weight and 1 more; images 4.jpg (id 4)' in log
    assert 'skipped: 2 in a row of at most 2, 2 in all' in log
    assert 'skipped: 1 in a row of at most 2, 3 in all' in log
    scalars = [json.loads(line) for line in next(tmp_path.glob('*/vis_data/scalars.json')).read_text().splitlines()]
    assert not any(math.isnan(value) for line in scalars for value in line.values())
    assert not isinstance(runner.optim_wrapper.step, functools.partial)  # the hook has removed its check


def test_one_more_in_a_row_than_allowed_stops(tmp_path):
    with pytest.raises(NonFiniteError, match='iteration 3: '):
        train(config_of(tmp_path, max_skips=1, dataset=dict(spoiled=(2, 4))))
    record, before = (read_file(tmp_path / name) for name in ('nonfinite_iter_3.pth', 'iter_1.pth'))
    assert same(record['state_dict'], before['state_dict'])


def test_an_overflowing_norm_of_finite_gradients_is_fine(tmp_path):
    config = config_of(tmp_path, plant=dict(iterations=range(1, 7), value=1e30))
    config.optim_wrapper.optimizer.lr = 0.0
    train(config)
    assert (tmp_path / 'iter_6.pth').is_file()


@pytest.mark.parametrize(
    ('dataset', 'plant', 'images'),
    [
        (dict(spoiled=(5,)), None, 'images 4.jpg (id 4), 5.jpg (id 5). '),
        ({}, (4,), 'images 4.jpg (id 4), 5.jpg (id 5), 6.jpg (id 6), 7.jpg (id 7). '),
    ],
)
def test_accumulated_gradients_are_checked_at_each_update(dataset, plant, images, tmp_path):
    plant = plant and dict(iterations=plant)
    with pytest.raises(NonFiniteError) as error:
        train(config_of(tmp_path, dataset=dataset, plant=plant, accumulative_counts=2))
    assert images in str(error.value)
    record = read_file(tmp_path / 'nonfinite_iter_4.pth')
    assert [batch['number'] for batch in record['batches']] == [2, 3]
    assert same(record['state_dict'], read_file(tmp_path / 'iter_2.pth')['state_dict'])


@pytest.fixture
def scaled(monkeypatch) -> dict:
    """Settings of mixed precision with a loss scale, whose scaler MMEngine has on GPUs only."""
    if not hasattr(torch.amp, 'GradScaler'):
        pytest.skip('the scaler for CPUs needs torch 2.3')
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    monkeypatch.setattr(amp_optimizer_wrapper, 'GradScaler', functools.partial(torch.amp.GradScaler, device='cpu'))
    return dict(type='AmpOptimWrapper', dtype='bfloat16')


def test_overflows_under_a_dynamic_scale_are_left_to_the_scaler(scaled, tmp_path):
    plant = dict(iterations=(3,), value=math.inf)
    train(config_of(tmp_path, plant=plant, loss_scale='dynamic', **scaled))
    second, third, fourth = (read_file(tmp_path / f'iter_{i}.pth') for i in (2, 3, 4))
    scales = [content['optimizer']['loss_scaler']['scale'] for content in (second, third, fourth)]
    assert scales == [65536.0, 32768.0, 32768.0]
    assert same(*({'weight': one['state_dict']['last.weight']} for one in (second, third)))
    assert not torch.equal(*(one['state_dict']['last.weight'] for one in (third, fourth)))


@pytest.mark.parametrize(
    ('scale', 'dataset', 'plant', 'recorded'),
    [
        ('dynamic', dict(spoiled=(5,)), None, 65536.0),
        (128.0, {}, dict(iterations=(3,)), 128.0),
        (dict(enabled=False), {}, dict(iterations=(3,)), 1.0),
        (dict(init_scale=1.0), {}, dict(iterations=(3,)), 1.0),  # a scaler that has given up
    ],
)
def test_nan_under_a_loss_scale(scale, dataset, plant, recorded, scaled, tmp_path):
    with pytest.raises(NonFiniteError, match='iteration 3: '):
        train(config_of(tmp_path, plant=plant, dataset=dataset, loss_scale=scale, **scaled))
    record = read_file(tmp_path / 'nonfinite_iter_3.pth')
    assert same(record['state_dict'], read_file(tmp_path / 'iter_2.pth')['state_dict'])
    assert record['loss_scale'] == recorded


@pytest.mark.parametrize(('sampler', 'epoch', 'number'), [('InfiniteSampler', 0, 8), ('DefaultSampler', 1, 2)])
def test_a_batch_of_any_sampler_is_repeated(sampler, epoch, number, tmp_path, capsys):
    config = config_of(tmp_path, plant=dict(iterations=(9,)))
    config.train_cfg = dict(type='pvt_mm.IterBasedTrainLoop', max_iters=12)
    config.train_dataloader.sampler = dict(type=sampler, shuffle=True)
    with pytest.raises(NonFiniteError, match='iteration 9: '):
        train(config)
    (batch,) = read_file(tmp_path / 'nonfinite_iter_9.pth')['batches']
    assert (batch['epoch'], batch['number']) == (epoch, number)
    capsys.readouterr()
    assert replay_tool.main([str(next(tmp_path.glob('*.py'))), str(tmp_path / 'nonfinite_iter_9.pth')]) == 1
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found['losses'], found['images']) == ([batch['losses']], batch['images'])
    # The planted NaN came from a hook, and is not there in the replay.
    assert (found['reproduced'], found['first_value'], found['first_gradient']) == (False, None, None)
    assert found['gradients'] == dict(bad=0, all=6, first=[])


def _one_of_two(rank: int, folder: Path) -> None:
    os.environ['LOCAL_RANK'] = str(rank)
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    config = config_of(folder / 'work', dataset=dict(cut=(9,)))
    config.merge_from_dict(dict(launcher='pytorch', model_wrapper_cfg=dict(broadcast_buffers=False, device_ids=None)))
    try:
        train(config)
    except NonFiniteError as error:
        (folder / f'error{rank}').write_text(str(error))
    torch.distributed.destroy_process_group()


def test_two_ranks_stop_on_a_nan_loss_of_one(tmp_path, capsys):
    multiprocessing.set_forkserver_preload([__name__])  # imports once
    torch.multiprocessing.start_processes(_one_of_two, (tmp_path,), nprocs=2, start_method='forkserver')
    for rank in range(2):
        message = (tmp_path / f'error{rank}').read_text()
        assert 'iteration 3: loss nan (loss_cut nan), NaN/Inf in 0 of 6 gradients' in message
        assert 'images 9.jpg (id 9, rank 1), 11.jpg (id 11, rank 1). ' in message
        assert message.endswith('nonfinite_iter_3_rank1.pth')
    work = tmp_path / 'work'
    assert [path.name for path in work.glob('nonfinite*')] == ['nonfinite_iter_3_rank1.pth']
    assert (work / 'last_checkpoint').read_text().endswith('iter_2.pth')

    # One process repeats what rank 1 of two did.
    config = next(work.glob('*.py'))
    assert replay_tool.main([str(config), str(work / 'nonfinite_iter_3_rank1.pth')]) == 0
    results = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert results['losses'][0]['loss'] == 'nan'
    recorded = read_file(work / 'nonfinite_iter_3_rank1.pth')['batches'][0]['losses']
    assert results['losses'][0]['loss_square'] == recorded['loss_square']
