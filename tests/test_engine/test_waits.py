"""How often a training step makes the CPU wait for the GPU and the ranks for each other, on a stand-in for a GPU."""

import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner, runner
from torch.utils._pytree import tree_map

from pvt_mm.checkpoint.reader import read_file
from pvt_mm.engine.hooks import checkpoint_hook
from pvt_mm.engine.hooks.checkpoint_hook import STOPPED, CheckpointHook, StopSignal
from tests.conftest import TINY_ARCH, forget_runs
from tests.test_engine.stand_in_gpu import DEVICE, OnDevice, StandInGPU, to_device
from tests.test_engine.trouble import assert_same_training


@DATASETS.register_module()
class Noise(torch.utils.data.Dataset):
    metainfo = {}  # noqa: RUF012

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return dict(inputs=torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(index)))


@MODELS.register_module()
class Summed(BaseModel):
    """A PVT and BatchNorm, with two losses."""

    def __init__(self):
        super().__init__()
        self.backbone = MODELS.build(
            dict(type='pvt_mm.PVT', arch=TINY_ARCH | dict(depths=(1, 1, 1, 1)), drop_path_rate=0.1)
        )
        self.norm = torch.nn.BatchNorm2d(32)

    def forward(self, inputs, mode):
        maps = self.backbone(torch.stack(inputs))
        return dict(loss_maps=maps[0].square().mean(), loss_norm=self.norm(maps[3]).abs().mean())


class Watch(Hook):
    """Notes what each step waits for, without the checkpoint that is saved after it."""

    priority = 'LOW'

    def __init__(self):
        self.gpu, self.steps, self.operators = StandInGPU(), [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.before = self.gpu.waits.copy(), self.gpu.operators

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.steps.append(self.gpu.waits - self.before[0])
        self.operators.append(self.gpu.operators - self.before[1])


def train(folder: Path, watch: Watch, resume: bool = False, **trouble) -> None:
    """Trains for four steps on the stand-in, and saves a checkpoint after two of them."""
    forget_runs()
    config = Config(
        dict(
            model=dict(type='Summed'),
            work_dir=str(folder),
            resume=resume,
            train_dataloader=dict(
                dataset=dict(type='Noise'), sampler=dict(type='DefaultSampler', shuffle=False), batch_size=2
            ),
            train_cfg=dict(type='pvt_mm.EpochBasedTrainLoop', max_epochs=1),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)),
            default_hooks=dict(
                finite=dict(type='pvt_mm.FiniteHook'),
                checkpoint=dict(type='pvt_mm.CheckpointHook', by_epoch=False, interval=2),
            ),
            custom_hooks=[dict(type='Trouble', **trouble)] if trouble else [],
            randomness=dict(seed=3),
            default_scope='mmengine',
            experiment_name=folder.name,
        )
    )
    trainer = Runner.from_cfg(config)
    trainer.register_hook(watch)
    with watch.gpu:
        to_device(trainer.model)
        trainer.model.data_preprocessor._device = DEVICE
        trainer.train()


@pytest.fixture(autouse=True)
def _on_device(monkeypatch):
    """Lets MMEngine load checkpoints to the stand-in, as to a GPU."""
    load = runner._load_checkpoint
    to = lambda value: OnDevice(value) if isinstance(value, torch.Tensor) else value  # noqa: E731
    monkeypatch.setattr(runner, '_load_checkpoint', lambda *args, **kwargs: tree_map(to, load(*args, **kwargs)))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


# The two images come to the device. FiniteHook reads its flag, and MMEngine logs the loss and its two parts.
WAITS = dict(_to_copy=2, _local_scalar_dense=1 + 3)


def test_a_step_waits_as_little_after_resume_as_before(tmp_path):
    whole, resumed = Watch(), Watch()
    train(tmp_path, whole)
    assert [dict(step) for step in whole.steps] == 4 * [WAITS]
    content = read_file(tmp_path / 'iter_4.pth')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_2.pth'))
    train(tmp_path, resumed, resume=True)
    assert [dict(step) for step in resumed.steps] == 2 * [WAITS]
    assert resumed.operators == whole.operators[2:]
    assert_same_training(read_file(tmp_path / 'iter_4.pth'), content)


@pytest.fixture
def reductions(monkeypatch) -> list[torch.Tensor]:
    """Lets the hooks believe in a second rank, to which nothing happens, and notes what they reduce with it."""
    reduced = []
    monkeypatch.setattr(checkpoint_hook, 'get_world_size', lambda: 2)
    monkeypatch.setattr(checkpoint_hook, 'get_comm_device', lambda: DEVICE)
    monkeypatch.setattr(checkpoint_hook, 'all_reduce', lambda data, op: reduced.append((data.device, len(data), op)))
    return reduced


def test_ranks_agree_once_a_step_about_nan_and_signals(reductions, tmp_path):
    watch = Watch()
    with pytest.raises(SystemExit) as stop:
        train(tmp_path, watch, what='SIGTERM', step=3)
    assert stop.value.code == STOPPED
    assert (tmp_path / 'last_checkpoint').read_text().endswith('iter_3.pth')
    step, save = [(DEVICE, 2, 'max')], [(DEVICE, 1, 'max')]
    assert reductions == step + step + save + step + save
    # one copy of both flags instead of FiniteHook's one flag
    assert [dict(step) for step in watch.steps] == 3 * [dict(_to_copy=3, _local_scalar_dense=3)]


@pytest.mark.parametrize(('ranks', 'asked'), [(1, [*range(25)]), (2, [0, 10, 20])])
def test_ranks_ask_for_signals_at_every_tenth_step_of_an_evaluation(ranks, asked, monkeypatch):
    monkeypatch.setattr(checkpoint_hook, 'get_world_size', lambda: ranks)
    hook, steps = CheckpointHook(), []
    hook.stop = SimpleNamespace(received=lambda: steps.append(step))
    trainer = SimpleNamespace(val_loop=SimpleNamespace(dataloader=range(25)))
    hook.before_val_epoch(trainer)
    for step in range(26):  # this rank has one step more than another
        hook.after_val_iter(trainer, step)
    assert steps == asked


def test_a_signal_to_another_rank_is_received_once_asked(monkeypatch):
    came, asked = torch.zeros(2, dtype=torch.int32), []
    monkeypatch.setattr(checkpoint_hook, 'get_world_size', lambda: 2)
    monkeypatch.setattr(checkpoint_hook, 'all_reduce', lambda data, op: asked.append(data.copy_(came[-len(data) :])))
    stop = StopSignal()
    assert not stop.any_rank(torch.tensor(True))
    assert not stop.received()
    came[1] = 1
    assert not stop.any_rank(torch.tensor(True))
    assert stop.received()
    assert len(asked) == 2
    assert stop.received()  # asks
    assert len(asked) == 3
    stop.ignore()
