"""Several processes train the model that one would, stop together, resume exactly, and never hang."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from pvt_mm.checkpoint import read_file
from pvt_mm.datasets.shapes import make_shapes
from pvt_mm.engine.checkpoint_hook import STOPPED
from tests.conftest import ROOT
from tests.crash.crash import flat, same
from tests.crash.tasks import write_task
from tools import launch

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
        if runner.iter == self.step and batch_idx == 0 and self.evaluating:
            self.make(runner)

    def make(self, runner):
        if self.rank not in (None, runner.rank):
            return
        if self.what == 'full disk':
            Path.write_bytes = no_space
        elif self.what == 'exception':  # as of a bug
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
    Config.pretty_text = ''  # half of the time of so short a run goes into formatting it
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
    make_shapes(root, image_size=64, train=IMAGES, val=3)
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
model = dict(backbone=plain_backbone, neck=dict(out_channels=16), bbox_head=dict(in_channels=16, feat_channels=16))
train_cfg = dict(max_epochs=5)
""",
    semantic_fpn="""
plain = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
norm_cfg = dict(_delete_=True, type='GN', num_groups=8)
head = dict(norm_cfg=norm_cfg, dropout_ratio=0, in_channels=[16, 16, 16, 16], channels=16)
model = dict(backbone=plain_backbone, neck=dict(out_channels=16), decode_head=head)
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


def write_troubled(config: Path, **trouble) -> Path:
    hooks = [*map(dict, Config.fromfile(config).get('custom_hooks', [])), dict(type='Trouble', **trouble)]
    path = config.with_name(f'{config.stem}_troubled.py')
    path.write_text(f"_base_ = '{config.name}'\ncustom_hooks = {hooks}\n")
    return path


def last(folder: Path) -> dict:
    return read_file((folder / 'last_checkpoint').read_text())


def state(folder: Path) -> dict:
    """Returns all that a run's last checkpoint has of its training."""
    content = last(folder)
    parts = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')
    return dict(flat({part: content.get(part) for part in parts}))


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


def test_a_signal_to_one_process_stops_all_and_they_resume_exactly(shapes, tmp_path):
    config = write_task('retinanet', tmp_path, shapes, epochs=2)  # of 3 steps in 2 processes
    assert train(2, config, tmp_path / 'whole') == [0, 0]
    troubled = write_troubled(config, what='SIGTERM', step=2, rank=1)
    assert train(2, troubled, tmp_path / 'part') == [STOPPED, STOPPED]
    assert [path.name for path in (tmp_path / 'part').glob('*.pth')] == ['iter_2.pth']
    shutil.copytree(tmp_path / 'part', tmp_path / 'alone')
    # once more in an evaluation, of which the signal is to all
    troubled = write_troubled(config, what='SIGTERM', step=6, evaluating=True)
    assert train(2, troubled, tmp_path / 'part', '--resume') == [STOPPED, STOPPED]
    assert train(2, config, tmp_path / 'part', '--resume') == [0, 0]
    whole, part = state(tmp_path / 'whole'), state(tmp_path / 'part')
    assert whole.keys() == part.keys()
    assert [name for name in whole if not same(whole[name], part[name])] == []

    # in one process there are six steps to an epoch
    assert train(1, config, tmp_path / 'alone', '--resume') == [0]
    assert last(tmp_path / 'alone')['meta']['iter'] == 2 + 6 + 6
    log = Path(f'{tmp_path}/alone.log').read_text()
    assert '1 processes with 2 images each go on from a checkpoint of 2 processes with 2 images each, at the' in log
    assert 'the checkpoint is of epochs of 3 steps, and these have 6 ' in log
    assert 'epoch 1 begins anew' in log
    assert 'Epoch(val)' in log


@pytest.mark.parametrize(
    ('trouble', 'codes', 'message'),
    [
        (dict(what='SIGKILL', rank=1), [1, -signal.SIGKILL], 'another process of the training has ended'),
        (dict(what='exception', rank=0), [1, 1], 'RuntimeError: one process has had enough'),
        (dict(what='full disk', rank=0), [2, 2], 'error: epoch_2.pth cannot be written to '),
    ],
)
def test_a_process_that_fails_ends_the_others(trouble, codes, message, shapes, tmp_path):
    config = write_task('classifier', tmp_path, shapes, epochs=2)
    started = time.monotonic()
    troubled = write_troubled(config, step=5, **trouble)
    assert train(2, troubled, tmp_path / 'run', '--no-validate') == codes
    assert time.monotonic() - started < 60
    log = Path(f'{tmp_path}/run.log').read_text()
    print(log[-3000:])
    assert message in log
    assert log.count('Traceback') == (trouble['what'] == 'exception')
    assert (tmp_path / 'run/last_checkpoint').read_text().endswith('epoch_1.pth')
    assert train(2, config, tmp_path / 'run', '--resume', '--no-validate') == [0, 0]
    assert last(tmp_path / 'run')['meta'] | dict(epoch=2, iter=6) == last(tmp_path / 'run')['meta']


UNEVEN = 'train_dataloader.dataset.indices=13', 'train_cfg.val_interval=1'
NOT_ROUNDED = 'train_dataloader.sampler.round_up=False', 'val_dataloader.sampler.round_up=False'


@pytest.mark.parametrize(
    ('task', 'options', 'steps'),
    [
        ('classifier', UNEVEN, 3),  # 7 images each, of which the 7th is no whole batch, as that config has it
        ('retinanet', (*UNEVEN, *NOT_ROUNDED), 3),  # 7 and 6 images, of which the 7th has to be left out
        ('retinanet', (*UNEVEN, 'train_dataloader.dataset.indices=1'), 1),  # the same image for both
    ],
)
def test_data_that_does_not_divide_by_the_processes_is_trained_on(task, options, steps, alike, tmp_path):
    config = write_task(task, tmp_path, alike, epochs=1)
    codes = train(2, config, tmp_path / 'run', '--cfg-options', *options)
    assert codes == [0, 0], Path(f'{tmp_path}/run.log').read_text()[-3000:]
    assert last(tmp_path / 'run')['meta']['iter'] == steps


def test_fewer_images_than_processes_are_refused_where_they_are_not_repeated(alike, tmp_path):
    config = write_task('retinanet', tmp_path, alike, epochs=1)
    options = [*NOT_ROUNDED, 'train_dataloader.dataset.indices=1']
    assert train(2, config, tmp_path / 'run', '--cfg-options', *options) == [2, 2]
    log = Path(f'{tmp_path}/run.log').read_text()
    assert 'error: the training data has 1 images, too few for 2 processes with a batch of 2: lower train_data' in log


ENDING = """
import os, signal, sys, time
how, rank = sys.argv[1:]
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
if os.environ['RANK'] == rank:
    os.kill(os.getpid(), signal.SIGKILL) if how == 'killed' else sys.exit(int(how))
time.sleep(30)
"""


@pytest.mark.parametrize(('how', 'code'), [('75', 75), ('2', 2), ('killed', 137)])
def test_torchrun_ends_with_the_code_of_the_process_that_failed_first(how, code, tmp_path, capfd):
    (tmp_path / 'ending.py').write_text(ENDING)
    started = time.monotonic()
    assert launch.main(['--standalone', '--nproc_per_node=2', str(tmp_path / 'ending.py'), how, '1']) == code
    assert time.monotonic() - started < 20
    how = 'was killed by SIGKILL' if how == 'killed' else f'ended with exit code {how}'
    assert (f'error: process 1 {how}, and the others were stopped' in capfd.readouterr().err) == (code != 75)


def test_torchrun_told_to_stop_ends_with_75(tmp_path):
    (tmp_path / 'ending.py').write_text(ENDING)
    told = threading.Timer(2, os.kill, (os.getpid(), signal.SIGTERM))
    told.start()
    assert launch.main(['--standalone', '--nproc_per_node=2', str(tmp_path / 'ending.py'), '0', '2']) == STOPPED


@pytest.fixture(autouse=True)
def _handlers():
    numbers = signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT
    handlers = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


TROUBLED = """
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class Fails(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 4 and runner.rank == 1:
            raise RuntimeError('one process has had enough')
"""


def test_dist_train_shows_what_went_wrong_in_a_process(shapes, tmp_path):
    (tmp_path / 'fails.py').write_text(TROUBLED)
    config = write_task('classifier', tmp_path, shapes, epochs=2)
    failing = f"_base_ = '{config.name}'\ncustom_imports = dict(imports=['fails'])\n"
    (tmp_path / 'failing.py').write_text(f"{failing}custom_hooks = [dict(type='Fails')]\n")
    command = [str(ROOT / 'tools/dist_train.sh'), 'failing.py', '2', '--work-dir', 'run', '--no-validate']
    environment = {**os.environ, 'PYTHONPATH': f'{ROOT}:{tmp_path}', 'PYTHON': sys.executable, 'PORT': '29512'}
    started = time.monotonic()
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert time.monotonic() - started < 60
    assert result.returncode == 1
    print(result.stderr[-3000:])
    assert "raise RuntimeError('one process has had enough')" in result.stderr
    assert 'error: process 1 ended with exit code 1, and the others were stopped' in result.stderr
    commands = [path.read_bytes() for path in Path('/proc').glob('[0-9]*/cmdline')]
    assert not any(b'failing.py' in command for command in commands)
    assert train(2, config, tmp_path / 'run', '--resume', '--no-validate') == [0, 0]
