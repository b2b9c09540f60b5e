"""What MMEngine writes is read without --trust, and what it would run or read with other readers is not."""

import argparse
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.model import BaseModel
from mmengine.optim import OneCycleParamScheduler, OptimWrapper
from mmengine.registry import DATASETS, HOOKS, MODELS, PARAM_SCHEDULERS
from mmengine.runner import CheckpointLoader
from torch.utils.data import Dataset

from pvt_mm.apis.flags import resume
from pvt_mm.apis.launch import build_runner
from pvt_mm.checkpoint import reader
from pvt_mm.checkpoint.reader import read_file, safe_reading
from pvt_mm.utils.errors import CheckpointError


@MODELS.register_module()
class OneLayer(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, inputs, mode):
        return {'loss': self.layer(inputs.float()).mean()}


METAINFO = dict(classes=('one', 'two'), palette=[(1, 2, 3)])


@DATASETS.register_module()
class Numbers(Dataset):
    def __init__(self):
        self.metainfo = METAINFO

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {'inputs': torch.ones(2)}


@HOOKS.register_module()
class Scaler(Hook):
    """Saves what AmpOptimWrapper does, which needs a GPU, and a best score as MMSegmentation has it."""

    def before_train(self, runner):
        runner.message_hub.update_info('best_score', np.float32(0.5))

    def before_save_checkpoint(self, runner, checkpoint):
        scaler = dict(growth_factor=2.0, backoff_factor=0.5, growth_interval=2000, _growth_tracker=0)
        checkpoint['optimizer']['loss_scaler'] = dict(scale=65536.0, **scaler)


SCHEDULERS = dict(
    ConstantLR={},
    CosineAnnealingLR=dict(T_max=9),
    CosineRestartLR=dict(periods=[4, 5], restart_weights=[1, 0.5], eta_min=0.0),
    ExponentialLR=dict(gamma=0.9),
    LinearLR={},
    MultiStepLR=dict(milestones=[1, 2]),
    OneCycleLR=dict(eta_max=0.1, total_steps=9, anneal_strategy='linear'),
    PolyLR=dict(power=0.9),
    StepLR=dict(step_size=2),
)


def config(work_dir, by_epoch, length=2):
    loop = dict(by_epoch=by_epoch, **{'max_epochs' if by_epoch else 'max_iters': length})
    return Config(
        dict(
            work_dir=str(work_dir),
            model=dict(type='OneLayer'),
            train_dataloader=dict(
                batch_size=2,
                num_workers=0,
                dataset=dict(type='Numbers'),
                sampler=dict(type='DefaultSampler'),
                collate_fn=dict(type='default_collate'),
            ),
            train_cfg=loop,
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01), clip_grad=dict(max_norm=1.0)),
            param_scheduler=[dict(type='MultiStepLR', milestones=[1], by_epoch=by_epoch)],
            custom_hooks=[dict(type='EMAHook'), dict(type='Scaler')],
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=by_epoch, interval=1)),
            experiment_name=f'{work_dir}',
            log_level='ERROR',
        )
    )


@pytest.mark.parametrize('by_epoch', [True, False])
def test_a_checkpoint_of_mmengine_is_read_and_resumed(by_epoch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build_runner(config(tmp_path / 'first', by_epoch)).train()
    (last,) = (tmp_path / 'first').glob('*_2.pth')
    content = read_file(last)
    assert content['meta']['epoch' if by_epoch else 'iter'] == 2
    assert content['optimizer']['loss_scaler']['scale'] == 65536
    assert {'ema_state_dict', 'param_schedulers'} <= set(content)
    assert len(content['message_hub']['log_scalars']['train/loss'].data[0]) == (4 if by_epoch else 2)
    assert content['message_hub']['runtime_info']['best_score'] == np.float32(0.5)
    assert content['meta']['dataset_meta'] == METAINFO

    # A config in the meta, as MMCV has it, is Python that MMEngine runs at a resume.
    content['meta']['config'] = "open('canary', 'w')\n"
    torch.save(content, 'planted.pth')
    resumed = config(tmp_path / 'second', by_epoch, length=3)
    resume(resumed, 'planted.pth')
    with safe_reading():
        runner = build_runner(resumed)
        runner.train()
    assert (runner.epoch if by_epoch else runner.iter) == 3
    assert not Path('canary').exists()


def test_the_state_of_every_scheduler_is_read(tmp_path):
    for name, arguments in SCHEDULERS.items():
        optimizer = torch.optim.SGD([dict(params=torch.nn.Parameter(torch.ones(1)), lr=0.1)], lr=0.1)
        wrapper = OptimWrapper(optimizer)
        scheduler = PARAM_SCHEDULERS.build(dict(type=name, optimizer=wrapper, **arguments))
        wrapper.step()
        scheduler.step()
        torch.save(dict(scheduler=scheduler.state_dict()), tmp_path / 'state.pth')
        assert read_file(tmp_path / 'state.pth')['scheduler'] == scheduler.state_dict(), name


def test_the_allow_list_has_nothing_that_no_checkpoint_needs(tmp_path, monkeypatch):
    history = MessageHub.get_instance('allow-list')
    history.update_scalar('loss', 1.0)
    known = dict(
        args=argparse.Namespace(lr=0.1, empty=b''),
        message_hub=history.state_dict(),
        score=np.float32(0.5),
        anneal=OneCycleParamScheduler._annealing_cos,
        counts=HistoryBuffer([1.0], np.array([1], np.int32)),
        random=np.random.RandomState(0).get_state(),
    )
    torch.save(known, tmp_path / 'known.pth')
    for_other_numpy(tmp_path / 'known.pth', tmp_path / 'other.pth')
    allowed = reader.allowed_globals()
    for name in ('known.pth', 'other.pth'):
        assert read_file(tmp_path / name)['score'] == 0.5
    for removed in allowed:
        left = {name: value for name, value in allowed.items() if name != removed}
        monkeypatch.setattr(reader, 'allowed_globals', lambda left=left: left)
        with pytest.raises(CheckpointError, match=r'is refused: it asks to run|or is damaged'):  # noqa: PT012
            for name in ('known.pth', 'other.pth'):
                read_file(tmp_path / name)


def for_other_numpy(path: Path, target: Path) -> None:
    """Writes a checkpoint as it is written under the other of NumPy 1 and 2: the module of its arrays is renamed."""
    names = [b'cnumpy.core.', b'cnumpy._core.']
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, 'w') as archive:
        for member in source.infolist():
            content = source.read(member)
            if member.filename.endswith('data.pkl'):
                mine, other = names if names[0] in content else names[::-1]
                assert mine in content
                content = content.replace(mine, other)
            archive.writestr(member.filename, content)


def test_every_scheme_is_read_by_our_reader(tmp_path, monkeypatch):
    before = dict(CheckpointLoader._schemes)
    with safe_reading():
        check_schemes(tmp_path, monkeypatch)
    assert CheckpointLoader._schemes == before


def check_schemes(tmp_path, monkeypatch):
    assert len(set(CheckpointLoader._schemes.values())) == 1
    names = {'resnet50': 'https://example.com/resnet50.pth'}
    monkeypatch.setattr(reader, 'get_torchvision_models', lambda: names)
    monkeypatch.setattr(reader, 'get_external_models', lambda: names)
    monkeypatch.setattr(reader, '_download', lambda url: f'{tmp_path}/{url.rsplit("/")[-1]}')
    torch.save({'a': torch.ones(1)}, tmp_path / 'resnet50.pth')
    for scheme in ('torchvision', 'modelzoo', 'open-mmlab', 'openmmlab'):
        assert CheckpointLoader.load_checkpoint(f'{scheme}://resnet50')['a'] == 1
        with pytest.raises(CheckpointError, match=f'{scheme}://resnet5: there are no weights of this name'):
            read_file(f'{scheme}://resnet5')
    for path in ('pavi://model', 'mmcls://resnet50'):
        with pytest.raises(CheckpointError, match=f'{path} cannot be fetched'):
            CheckpointLoader.load_checkpoint(path)
