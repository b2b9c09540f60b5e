"""Training on a device as users start it: every kind of model, several ranks, and resuming."""

import functools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pvt_mm.checkpoint.reader import read_file
from tests.conftest import ROOT, TINY_ARCH
from tests.gpu.conftest import need, need_operators

IMAGES = dict(cuda=20, cpu=6)  # two in each of ten steps, or of three
COMMON = """
_base_ = '{root}/configs/{config}.py'
model = dict(backbone=dict(arch={arch}, init_cfg=None), {model})
classes = dict(classes=('circle', 'square', 'triangle'), palette=[[200, 0, 0], [0, 200, 0], [0, 0, 200]])
loading = dict(batch_size=2, num_workers=1)
default_hooks = dict(logger=dict(interval=1))
"""
BOXES = """
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomResize', scale=[{sizes}], keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(metainfo=classes, pipeline=pipeline), **loading)
train_cfg = dict(max_epochs=1)
"""
MAPS = """
model['data_preprocessor'] = dict(size=(64, 64))
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='RandomCrop', crop_size=(64, 64)),
    dict(type='PackSegInputs'),
]
data = dict(type='BaseSegDataset', reduce_zero_label=True, metainfo=classes, pipeline=pipeline)
train_dataloader = dict(dataset=data, **loading)
train_cfg = dict(max_iters={steps})
"""
CLASSES = """
train_dataloader = dict(sampler=dict(num_repeats=1, selected_round=0), **loading)
train_cfg = dict(max_epochs=1)
"""
# The config, what is loaded, and what is changed in the model, whose backbone has C channels.
KINDS = {
    'retinanet': ('retinanet/pvt_t_1x', BOXES, 'neck=dict(in_channels={C}), bbox_head=dict(num_classes=3)'),
    'mask_rcnn': (
        'mask_rcnn/pvt_t_1x',
        BOXES,
        'neck=dict(in_channels={C}), roi_head=dict(bbox_head=dict(num_classes=3), mask_head=dict(num_classes=3))',
    ),
    'detr': ('detr/pvt_s_50e', BOXES, 'neck=dict(in_channels=[{C[3]}]), bbox_head=dict(num_classes=3)'),
    'semantic_fpn': ('semantic_fpn/pvt_t_80k', MAPS, 'neck=dict(in_channels={C}), decode_head=dict(num_classes=3)'),
    'trans2seg': ('trans2seg/pvt_s_40k', MAPS, 'decode_head=dict(num_classes=3, in_channels=({C[0]}, {C[3]}))'),
    'classifier': ('classification/pvt_t_300e', CLASSES, 'head=dict(num_classes=3, in_channels={C[3]})'),
}
NEEDS = {'semantic_fpn': 'mmseg', 'trans2seg': 'mmseg', 'classifier': 'kornia'}  # the others need mmdet
WITH_OPERATORS = ('retinanet', 'mask_rcnn')
SEGMENTS = ('semantic_fpn', 'trans2seg')


@pytest.fixture(scope='module')
def data(tmp_path_factory, device) -> Path:
    """Generated images."""
    need('mmcv')
    from pvt_mm.datasets.shapes import make_shapes

    root = tmp_path_factory.mktemp('data') / 'shapes'
    make_shapes(root, image_size=64, train=IMAGES[device], val=2)
    return root


def write_config(kind: str, folder: Path, device: str) -> Path:
    """Writes the config of a small training: PVT-Tiny, or one of few channels on a CPU."""
    config, loaded, model = KINDS[kind]
    is_gpu = device == 'cuda'
    C = [64, 128, 320, 512] if is_gpu else list(TINY_ARCH['embed_dims'])
    filled = (COMMON + loaded).format(
        root=ROOT,
        config=config,
        arch="'tiny'" if is_gpu else f'dict(_delete_=True, **{TINY_ARCH})',
        model=model.format(C=C),
        sizes='(1333, 480), (1333, 800)' if is_gpu else '(96, 64), (96, 96)',
        steps=IMAGES[device] // 2,
    )
    path = folder / f'{kind}.py'
    path.write_text(filled)
    return path


def arguments(kind: str, config: Path, data: Path) -> list[str]:
    root = data / 'classification' if kind == 'classifier' else data
    return [str(config), '--no-validate', '--seed', '1', '--cfg-options', f'data_root={root}/']


def losses(work_dir: Path) -> dict[int, float]:
    """Returns the loss of each step."""
    paths = sorted(work_dir.glob('*/vis_data/scalars.json'))
    lines = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    return {line['step']: line['loss'] for line in lines if 'loss' in line}


def check_losses(found: dict[int, float], device: str) -> None:
    assert len(found) >= IMAGES[device] // 2
    assert all(map(math.isfinite, found.values()))


# In `make test` the others are covered by tests/test_tools/test_train_and_test.py.
@pytest.mark.parametrize(
    'kind', [pytest.param(kind, marks=[pytest.mark.full] * (kind != 'trans2seg')) for kind in KINDS]
)
def test_every_kind_trains_in_bfloat16(kind, device, data, tmp_path, note):
    need(NEEDS.get(kind, 'mmdet'))
    if kind in WITH_OPERATORS:
        need_operators(device)
    from tools import train

    amp = ['--amp', 'bf16'] if device == 'cuda' else []  # which the tool refuses on a CPU
    argv = arguments(kind, write_config(kind, tmp_path, device), data)
    assert train.main([*argv, '--work-dir', str(tmp_path / 'run'), *amp]) == 0
    found = losses(tmp_path / 'run')
    check_losses(found, device)
    how = 'bfloat16' if amp else 'float32, as --amp needs a GPU'
    note(f'{kind}, {how}: loss {found[min(found)]:.2f}, after {len(found)} steps {found[max(found)]:.2f}')


@pytest.mark.full
def test_ranks_train_together(device, data, tmp_path, note):
    """With NCCL on all GPUs there are, or gloo and two processes on a CPU."""
    need('mmdet')
    need_operators(device)
    ranks = torch.cuda.device_count() if device == 'cuda' else 2
    config, *argv = arguments('retinanet', write_config('retinanet', tmp_path, device), data)
    command = [ROOT / 'tools/dist_train.sh', config, str(ranks), '--work-dir', tmp_path / 'run', *argv]
    environment = os.environ | dict(PYTHON=sys.executable, NCCL_DEBUG='VERSION')
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert len(losses(tmp_path / 'run')) == math.ceil(IMAGES[device] / 2 / ranks)
    assert device == 'cpu' or 'NCCL version' in done.stdout + done.stderr
    note(f'{ranks} ranks: {"NCCL" if device == "cuda" else "gloo"}')


@pytest.mark.full
@pytest.mark.parametrize('deterministic', [True, False])
def test_a_resumed_training_continues(deterministic, device, data, tmp_path, note):
    """Bit by bit with --deterministic, and else with nearly the same losses."""
    need('mmdet')
    need_operators(device)
    config, *argv = arguments('retinanet', write_config('retinanet', tmp_path, device), data)
    argv += ['train_cfg.max_epochs=2', 'default_hooks.checkpoint.max_keep_ckpts=2']
    argv += ['--deterministic'] * deterministic
    whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
    run = functools.partial(subprocess.run, cwd=ROOT, capture_output=True, text=True)
    for folder, flags in ((whole, []), (resumed, ['--resume', whole / 'epoch_1.pth'])):
        done = run([sys.executable, ROOT / 'tools/train.py', config, '--work-dir', folder, *flags, *argv])
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    expected, found = losses(whole), losses(resumed)
    assert list(found) == list(expected)[len(expected) // 2 :]
    error = max(abs(found[step] - expected[step]) / expected[step] for step in found)
    weights, others = (read_file(folder / 'epoch_2.pth')['state_dict'] for folder in (whole, resumed))
    different = sum(not torch.equal(weights[name].cpu(), others[name].cpu()) for name in weights)
    how = 'with --deterministic' if deterministic else 'without --deterministic'
    note(f'resumed {how}: losses differ by {error:.1e}, {different} of {len(weights)} tensors')
    assert error < 0.02
    assert different == 0 or not deterministic
