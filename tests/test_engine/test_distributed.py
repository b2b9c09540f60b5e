"""Training in several processes: the same model as in one, stopped together, resumed exactly, and never left hanging."""

import contextlib
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from pvt_mm.checkpoint import read_file
from pvt_mm.datasets.shapes import make_shapes
from pvt_mm.engine.checkpoint_hook import STOPPED
from tests.conftest import ROOT
from tests.crash.crash import flat, same
from tests.crash.tasks import write_task

PROCESSES = multiprocessing.get_context('forkserver')
IMAGES, STEPS = 16, 20  # 4 images a step, over all processes


@HOOKS.register_module()
class Trouble(Hook):
    """Makes for trouble in one process, or in all, before a step is taken or a picture evaluated."""

    priority = 'LOWEST'

    def __init__(self, what: str, step: int, rank: int | None = None, evaluating: bool = False):
        self.what, self.step, self.rank, self.evaluating = what, step, rank, evaluating

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.step and not self.evaluating:
            self.make(runner)

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.step and batch_idx == 1 and self.evaluating:
            self.make(runner)

    def make(self, runner):
        if self.rank not in (None, runner.rank):
            return
        if self.what == 'full disk':
            Path.write_bytes = no_space
        elif self.what == 'exception':
            raise RuntimeError('one process has had enough')
        else:
            os.kill(os.getpid(), signal.Signals[self.what])


def no_space(path: Path, content: bytes) -> None:
    raise OSError(28, 'No space left on device')


def work(rank: int, processes: int, port: int, arguments: list[str], log: str, dtype: torch.dtype) -> None:
    """Is a process of ``tools/train.py``, as torchrun starts it."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    torch.set_default_dtype(dtype)
    names = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=processes, MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    os.environ.update({name: str(value) for name, value in names.items()})
    from tools import train

    sys.exit(train.main([*arguments, *(['--launcher', 'pytorch'] if processes > 1 else [])]))


def train(processes: int, config: Path, folder: Path, *flags: str, dtype: torch.dtype = torch.float32) -> list[int]:
    """Trains in new processes, and returns their exit codes; what they print goes to FOLDER.log."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    arguments = [str(config), '--work-dir', str(folder), '--deterministic', *flags]
    running = [
        PROCESSES.Process(target=work, args=(rank, processes, port, arguments, f'{folder}.log', dtype))
        for rank in range(processes)
    ]
    for process in running:
        process.start()
    until = time.monotonic() + 120
    try:
        for process in running:
            process.join(until - time.monotonic())
        return [process.exitcode for process in running]
    finally:
        for process in running:
            process.kill()


@pytest.fixture(scope='module', autouse=True)
def _server():
    """Processes are forked from one that has imported everything: a start takes a second."""
    path = f'{ROOT}{os.pathsep}{os.environ.get("PYTHONPATH", "")}'  # its modules are looked for there alone
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHONPATH', path)
        patch.setenv('OMP_NUM_THREADS', '1')
        PROCESSES.set_forkserver_preload(
            ['tools.train', 'mmdet.models', 'mmdet.datasets', 'mmseg.models', 'kornia', 'tests.crash.tasks']
        )
        multiprocessing.forkserver.ensure_running()
        yield


@pytest.fixture(scope='module')
def alike(tmp_path_factory) -> Path:
    """Generated pictures, of which detection's are one, in different noise: MMDetection divides a loss by the number of
    boxes in a process, and so they are as many in each."""
    root = tmp_path_factory.mktemp('data') / 'alike'
    make_shapes(root, image_size=64, train=IMAGES, val=2)
    path = root / 'annotations/instances_train2017.json'
    content, chance = json.loads(path.read_text()), np.random.default_rng(0)
    first = content['images'][0]
    boxes = [one for one in content['annotations'] if one['image_id'] == first['id']]
    picture = cv2.imread(str(root / 'train2017' / first['file_name']))
    content['annotations'] = []
    for image in content['images']:
        noise = chance.integers(-20, 20, picture.shape)
        cv2.imwrite(str(root / 'train2017' / image['file_name']), np.clip(picture + noise, 0, 255))
        content['annotations'] += [{**box, 'image_id': image['id']} for box in boxes]
    for number, box in enumerate(content['annotations']):
        box['id'] = number
    path.write_text(json.dumps(content))
    return root


PLAIN = dict(
    retinanet="""
plain = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(64, 64)),
    dict(type='PackDetInputs'),
]
model = dict(backbone=plain_backbone)
train_cfg = dict(max_epochs=5)
""",
    semantic_fpn="""
plain = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
norm_cfg = dict(_delete_=True, type='GN', num_groups=8)
model = dict(backbone=plain_backbone, decode_head=dict(norm_cfg=norm_cfg, dropout_ratio=0))
train_cfg = dict(max_iters=20)
default_hooks = dict(checkpoint=dict(interval=20))
""",
    classifier="""
plain = [dict(type='LoadImageFromFile'), dict(type='pvt_mm.PackInputs')]
off = dict(rand_augment=None, erasing=None, mixup=None, cutmix=None)
model = dict(backbone=plain_backbone, data_preprocessor=off)
train_cfg = dict(max_epochs=5)
""",
)


def write_plain(task: str, folder: Path, shapes: Path, processes: int) -> Path:
    """Writes the config of a task without anything that depends on random numbers but the order of the images."""
    base = write_task(task, folder, shapes, epochs=5)
    path = folder / f'{task}_in_{processes}.py'
    path.write_text(
        f"_base_ = '{base.name}'\ncustom_hooks = []\nplain_backbone = dict(drop_rate=0.0, drop_path_rate=0.0)\n"
        f'{PLAIN[task]}train_dataloader = dict(batch_size={4 // processes}, dataset=dict(pipeline=plain))\n'
    )
    return path


def last(folder: Path) -> dict:
    return read_file((folder / 'last_checkpoint').read_text())


@pytest.mark.parametrize('task', ['retinanet', 'semantic_fpn', 'classifier'])
def test_several_processes_train_the_model_of_one(task, alike, tmp_path):
    """Twenty steps in float64: in float32 AdamW makes more of the rounding errors than that."""
    weights = {}
    for processes in (1, 2, 4):
        config, folder = write_plain(task, tmp_path, alike, processes), tmp_path / str(processes)
        codes = train(processes, config, folder, '--no-validate', dtype=torch.float64)
        assert codes == processes * [0], Path(f'{folder}.log').read_text()[-3000:]
        content = last(folder)
        assert content['meta']['iter'] == STEPS
        weights[processes] = content['state_dict']
    one = weights.pop(1)
    largest = max(tensor.abs().max() for tensor in one.values())
    for processes, others in weights.items():
        error = max((others[name] - one[name]).abs().max() for name in one) / largest
        print(f'{task} in {processes} processes: {error:.1e}')
        assert error <= 1e-6
