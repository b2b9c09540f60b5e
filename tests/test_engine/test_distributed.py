"""Several processes train the model of one, stop together, resume exactly, and never hang."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch.distributed.launcher.api import LaunchConfig

from pvt_mm.datasets.shapes import make_shapes
from pvt_mm.engine.hooks.checkpoint_hook import STOPPED
from tests.conftest import ROOT
from tests.crash.tasks import write_task
from tests.test_engine.trouble import assert_same_bits, last, write_troubled
from tools import launch

PROCESSES = multiprocessing.get_context('forkserver')
IMAGES, STEPS = 16, 8  # 4 images per step, over all processes


def work(rank: int, processes: int, port: int, arguments: list[str], log: str, dtype: torch.dtype) -> None:
    """Runs ``tools/train.py`` as torchrun starts it."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    torch.set_default_dtype(dtype)
    names = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=processes, MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    os.environ.update({name: str(value) for name, value in names.items()})
    Config.pretty_text = ''  # formatting it takes half of the time of so short a run
    from tools import train

    opened = Counter()
    sys.addaudithook(lambda event, what: opened.update([str(what[0])]) if event == 'open' and what[1] == 'r' else None)
    try:
        sys.exit(train.main([*arguments, *(['--launcher', 'pytorch'] if processes > 1 else [])]))
    finally:
        ended = dict(opened=opened, ignores_sigterm=signal.getsignal(signal.SIGTERM) is signal.SIG_IGN)
        Path(f'{log}.rank{rank}').write_text(json.dumps(ended))


def train(processes: int, config: Path, folder: Path, *flags: str, dtype: torch.dtype = torch.float32) -> list[int]:
    """Trains in new processes, and returns their exit codes. Their output goes to FOLDER.log."""
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


def ends(folder: Path) -> list[dict]:
    """Returns what the ranks of the last training into a folder wrote at their end."""
    return [json.loads(Path(f'{folder}.log.rank{rank}').read_text()) for rank in range(2)]


@pytest.fixture(scope='module', autouse=True)
def _server():
    """Forks processes from one that has imported everything, so that a start takes a second."""
    path = f'{ROOT}{os.pathsep}{os.environ.get("PYTHONPATH", "")}'  # it imports from there only
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
    """Generated images. Those for detection are one image with different noise, so that each rank has as many boxes:
    MMDetection divides a loss by their number in a rank."""
    root = tmp_path_factory.mktemp('data') / 'alike'
    make_shapes(root, image_size=64, train=IMAGES, val=3)
    path = root / 'annotations/instances_train2017.json'
    content, chance = json.loads(path.read_text()), np.random.default_rng(0)
    first = content['images'][0]
    boxes = [one for one in content['annotations'] if one['image_id'] == first['id']]
    pixels = cv2.imread(str(root / 'train2017' / first['file_name']))
    content['annotations'] = []
    for image in content['images']:
        noise = chance.integers(-20, 20, pixels.shape)
        cv2.imwrite(str(root / 'train2017' / image['file_name']), np.clip(pixels + noise, 0, 255))
        content['annotations'] += [{**box, 'image_id': image['id']} for box in boxes]
    for number, box in enumerate(content['annotations'], start=1):
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
train_cfg = dict(max_epochs=2)
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
train_cfg = dict(max_iters=8)
default_hooks = dict(checkpoint=dict(interval=8))
""",
    classifier="""
plain = [dict(type='LoadImageFromFile'), dict(type='pvt_mm.PackInputs')]
off = dict(rand_augment=None, erasing=None, mixup=None, cutmix=None)
model = dict(backbone=plain_backbone, data_preprocessor=off)
train_cfg = dict(max_epochs=2)
""",
)


def write_plain(task: str, folder: Path, shapes: Path, processes: int) -> Path:
    """Writes the config of a task in which only the order of the images is random."""
    base = write_task(task, folder, shapes, epochs=2)
    path = folder / f'{task}_in_{processes}.py'
    path.write_text(
        f"_base_ = '{base.name}'\ncustom_hooks = []\nplain_backbone = dict(drop_rate=0.0, drop_path_rate=0.0)\n"
        f'{PLAIN[task]}train_dataloader = dict(batch_size={4 // processes}, dataset=dict(pipeline=plain))\n'
    )
    return path


@pytest.mark.parametrize(('task', 'processes'), [('retinanet', 2), ('semantic_fpn', 2), ('classifier', 4)])
def test_several_processes_train_the_model_of_one(task, processes, alike, tmp_path):
    """In float64, since AdamW enlarges rounding errors."""
    weights = []
    for count in (1, processes):
        config, folder = write_plain(task, tmp_path, alike, count), tmp_path / str(count)
        codes = train(count, config, folder, '--no-validate', dtype=torch.float64)
        assert codes == count * [0], Path(f'{folder}.log').read_text()[-3000:]
        assert last(folder)['meta']['iter'] == STEPS
        weights.append(last(folder)['state_dict'])
    one, several = weights
    largest = max(tensor.abs().max() for tensor in one.values())
    error = max((several[name] - one[name]).abs().max() for name in one) / largest
    print(f'{task} in {processes} processes: {error:.1e}')
    assert error <= 1e-6


def test_a_signal_to_one_rank_stops_all_and_they_resume_exactly(shapes, tmp_path):
    whole, part, alone = (tmp_path / name for name in ('whole', 'part', 'alone'))
    config = write_task('retinanet', tmp_path, shapes, epochs=2)  # of 3 steps in 2 processes
    assert train(2, config, whole) == [0, 0]
    assert train(2, write_troubled(config, what='SIGTERM', step=2, rank=1), part) == [STOPPED, STOPPED]
    assert [path.name for path in part.glob('*.pth')] == ['iter_2.pth']
    shutil.copytree(part, alone)
    # once more, to both ranks, during an evaluation
    troubled = write_troubled(config, what='SIGTERM', step=6, evaluating=True)
    assert train(2, troubled, part, '--resume') == [STOPPED, STOPPED]
    stopped = (part / 'last_checkpoint').read_text()
    assert all(ended['ignores_sigterm'] for ended in ends(part))  # which launchers send when the first one exits
    assert train(2, config, part, '--resume') == [0, 0]
    assert_same_bits(whole, part)
    first, second = (ended['opened'].get(stopped, 0) for ended in ends(part))
    assert first > second == 2  # its format and content; the first rank verifies and checks it for all

    # in one process there are six steps per epoch
    assert train(1, config, alone, '--resume') == [0]
    assert last(alone)['meta']['iter'] == 2 + 6 + 6
    log = Path(f'{alone}.log').read_text()
    assert '1 processes with 2 images each resume from a checkpoint of 2 processes with 2 images each; the l' in log
    assert 'the checkpoint is of epochs of 3 steps, and these have 6 ' in log
    assert 'epoch 1 starts again' in log
    assert 'Epoch(val)' in log


def test_a_rank_that_fails_ends_the_others_and_they_resume(shapes, tmp_path):
    config = write_task('classifier', tmp_path, shapes, epochs=2)
    folder = tmp_path / 'run'
    killed = write_troubled(config, step=5, what='SIGKILL', rank=1)
    started = time.monotonic()
    assert train(2, killed, folder, '--no-validate') == [1, -signal.SIGKILL]
    assert (folder / 'last_checkpoint').read_text().endswith('epoch_1.pth')
    full = write_troubled(config, step=5, what='full disk', rank=0)
    assert train(2, full, folder, '--no-validate', '--resume') == [2, 2]
    assert (folder / 'last_checkpoint').read_text().endswith('epoch_1.pth')
    assert time.monotonic() - started < 60
    log = Path(f'{folder}.log').read_text()
    print(log[-3000:])
    assert log.count('error: another rank exited') == 1
    assert log.count('error: epoch_2.pth cannot be written to ') == 1
    assert 'Traceback' not in log
    assert train(2, config, folder, '--resume', '--no-validate') == [0, 0]
    assert last(folder)['meta'] | dict(epoch=2, iter=6) == last(folder)['meta']


def test_the_first_rank_checks_the_data_for_all(shapes, tmp_path):
    """And ends all with one line, as other errors before the training."""
    data, folder = shutil.copytree(shapes, tmp_path / 'shapes'), tmp_path / 'run'
    path = sorted((data / 'annotations/training').iterdir())[1]
    cv2.imwrite(str(path), np.full_like(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), 7))
    folder.mkdir()
    (folder / 'last_checkpoint').write_text('iter_9.pth')
    assert train(2, write_task('semantic_fpn', tmp_path, data, epochs=1), folder) == [2, 2]
    log = Path(f'{folder}.log').read_text()
    assert 'has checkpoints of another run' not in log  # they are not overwritten
    message = f'error: the train data: {path}: 4096 pixels have the label 6; '
    assert log.count('error: ') == log.count(message) == 1
    assert 'Traceback' not in log


NOT_ROUNDED = 'train_dataloader.sampler.round_up=False', 'val_dataloader.sampler.round_up=False'


@pytest.mark.parametrize(
    ('images', 'options', 'steps'),
    [
        (13, NOT_ROUNDED, 3),  # 7 and 6 images, of which the 7th is left out
        (1, (), 1),  # the same image for both
    ],
)
def test_data_that_does_not_divide_by_the_processes_is_trained_on(images, options, steps, alike, tmp_path):
    config = write_task('retinanet', tmp_path, alike, epochs=1)
    more = [f'train_dataloader.dataset.indices={images}', 'train_cfg.val_interval=1', *options]
    assert train(2, config, tmp_path / 'run', '--cfg-options', *more) == [0, 0]
    assert last(tmp_path / 'run')['meta']['iter'] == steps


def test_fewer_images_than_processes_raise_if_they_are_not_repeated(alike, tmp_path):
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
if how.endswith('started'):
    open(how + os.environ['RANK'], 'w').close()
time.sleep(30)
"""


@pytest.mark.parametrize(('how', 'code'), [('75', 75), ('killed', 137)])
def test_torchrun_exits_with_the_code_of_the_rank_that_failed_first(how, code, tmp_path, capfd):
    (tmp_path / 'ending.py').write_text(ENDING)
    started = time.monotonic()
    assert launch.main(['--standalone', '--nproc_per_node=2', str(tmp_path / 'ending.py'), how, '1']) == code
    assert time.monotonic() - started < 20
    assert ('error: rank 1 was killed by SIGKILL, and the others' in capfd.readouterr().err) == (how == 'killed')


def test_torchrun_waits_for_checkpoints_to_be_saved(monkeypatch):
    monkeypatch.setattr(launch.run, 'main', lambda argv: waits.append(os.environ['TORCH_ELASTIC_SHUTDOWN_TIMEOUT']))
    waits = []
    with monkeypatch.context() as unset:
        unset.delenv('TORCH_ELASTIC_SHUTDOWN_TIMEOUT', raising=False)
        assert launch.main(['train.py']) == 0
        config = LaunchConfig(1, 1, 1)
        assert getattr(config, 'shutdown_timeout', 120) == 120  # older versions do not have it
    monkeypatch.setenv('TORCH_ELASTIC_SHUTDOWN_TIMEOUT', '7')
    assert launch.main(['train.py']) == 0
    assert waits == ['120', '7']


def test_a_port_in_use_is_one_line(tmp_path, capfd):
    with socket.create_server(('::', 0), family=socket.AF_INET6, dualstack_ipv6=True) as taken:
        port = f'--master_port={taken.getsockname()[1]}'
        assert launch.main(['--nnodes=1', '--node_rank=0', port, str(tmp_path / 'gone.py')]) == 2
    assert re.search(
        r'^error: (the port|port \d+) is in use by another program: .*PORT=$', capfd.readouterr().err, re.M
    )


def test_torchrun_exits_with_75_after_sigterm(tmp_path):
    def stop():
        while not all((tmp_path / f'started{rank}').exists() for rank in range(2)):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    (tmp_path / 'ending.py').write_text(ENDING)
    threading.Thread(target=stop, daemon=True).start()
    script = [str(tmp_path / 'ending.py'), str(tmp_path / 'started'), '2']  # no rank 2 fails
    assert launch.main(['--standalone', '--nproc_per_node=2', *script]) == STOPPED


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
            raise RuntimeError('planted')
"""


def test_dist_train_shows_the_error_of_a_rank(shapes, tmp_path):
    (tmp_path / 'fails.py').write_text(TROUBLED)
    config = write_task('classifier', tmp_path, shapes, epochs=2)
    failing = f"_base_ = '{config.name}'\ncustom_imports = dict(imports=['fails'])\n"
    (tmp_path / 'failing.py').write_text(f"{failing}custom_hooks = [dict(type='Fails')]\n")
    command = [str(ROOT / 'tools/dist_train.sh'), 'failing.py', '2', '--work-dir', 'run', '--no-validate']
    environment = {**os.environ, 'PYTHONPATH': f'{ROOT}:{tmp_path}', 'PYTHON': sys.executable}
    started = time.monotonic()
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert time.monotonic() - started < 120
    assert result.returncode == 1
    print(result.stderr[-3000:])
    assert "raise RuntimeError('planted')" in result.stderr
    assert 'error: rank 1 exited with code 1, and the others were stopped' in result.stderr
    commands = [path.read_bytes() for path in Path('/proc').glob('[0-9]*/cmdline')]
    assert not any(b'failing.py' in command for command in commands)
