"""Every tool on made-up command lines: it succeeds, or ends with one line that says what is wrong."""

import argparse
import contextlib
import importlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from pvt_mm.apis.config import load_config
from tests.conftest import ROOT, TINY_ARCH, forget_runs
from tests.fuzz import cases

# launch.py's arguments are torchrun's
TOOLS = sorted(path.stem for path in (ROOT / 'tools').glob('*.py') if path.stem != 'launch')
# Arguments before and after the made-up ones, so that no tool runs for minutes or writes into this project.
BEFORE = {'make_shapes': ['--train', '2', '--val', '1'], 'sweep': ['--dry-run']}
AFTER = {
    'benchmark': ['--plot', 'text.txt'],
    'benchmark_gpu': ['--out', 'text.txt/gpu.md'],
    'benchmark_report': ['--out', 'text.txt/docs'],
    'doctor': ['--fast'],
    'export_onnx': ['--out', 'text.txt'],
    'flops': ['--shape', '64'],
    'model_zoo': ['--check'],
    'paper_tables': ['--out', 'text.txt/tables.md'],
}
NO_JSON = ('model_zoo', 'train', 'sweep')  # whose last line is not JSON
LEFT_OUT = {'flops': {'all'}}

DETECTOR = """
_base_ = '{root}/configs/demo/retinanet_shapes.py'
model = dict(
    backbone=dict(arch=dict(_delete_=True, **{arch})),
    neck=dict(in_channels=[8, 16, 24, 32], out_channels=8),
    bbox_head=dict(in_channels=8, feat_channels=8, stacked_convs=1),
    test_cfg=dict(score_thr=0.0, max_per_img=5),
)
loader = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(dataset=dict(indices=2), **loader)
val_dataloader = dict(dataset=dict(indices=2), **loader)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=1, val_interval=1)
"""
CLASSIFIER = """
_base_ = '{root}/configs/demo/classifier_shapes.py'
arch = dict(_delete_=True, **{arch})
model = dict(backbone=dict(arch=arch), head=dict(in_channels=32))
loader = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(batch_size=2, dataset=dict(indices=2), **loader)
val_dataloader = loader
test_dataloader = loader
train_cfg = dict(max_epochs=1, val_interval=1)
"""
SWEEP = """
metric = 'coco/bbox_mAP'
configs = dict(shapes='detector.py')
options = dict(slow=['optim_wrapper.optimizer.lr=1e-5'], fast=['optim_wrapper.optimizer.lr=1e-3'])
seeds = (0, 1)
"""


@pytest.fixture(scope='module')
def folder(shapes, tmp_path_factory) -> Iterator[Path]:
    """The working directory: tiny configs, weights, images and logs, valid and invalid ones."""
    folder = tmp_path_factory.mktemp('commands')
    before = os.getcwd()
    os.chdir(folder)
    for name, text in (('detector', DETECTOR), ('classifier', CLASSIFIER)):
        Path(f'{name}.py').write_text(text.format(root=ROOT, arch=TINY_ARCH))
        config = load_config(f'{name}.py')
        with DefaultScope.overwrite_default_scope(config.default_scope):
            torch.save({'state_dict': MODELS.build(config.model).state_dict()}, f'{name}.pth')
    Path('data').mkdir()
    Path('data/shapes').symlink_to(shapes)
    Path('sweep.py').write_text(SWEEP)
    Path('text.txt').write_text('text')
    Path('text.pth').write_text('text')
    Path('text.py').write_text('this is no Python')
    Path('raising.py').write_text('raise RuntimeError("of the\\nconfig")')
    Path('empty.py').touch()
    Path('some.py').write_text('model = dict(type="PVT")\na = 1\n')
    Path('strange.py').write_text('train_dataloader = 3\nmodel = [1]\ntest_dataloader = dict(dataset=None)\n')
    torch.save({'layer.weight': torch.ones(1)}, 'other.pth')
    for name in ('images', 'empty', 'work/1/vis_data'):
        Path(name).mkdir(parents=True)
    shutil.copy('detector.pth', 'work/epoch_1.pth')
    Path('work/last_checkpoint').write_text(str(folder / 'work/epoch_1.pth'))
    lines = [dict(loss=1 / step, iter=step, step=step, epoch=1) for step in (1, 2)] + [
        {'coco/bbox_mAP': 0.5, 'step': 2}
    ]
    Path('work/1/vis_data/scalars.json').write_text('\n'.join(map(json.dumps, lines)))
    Path('scalars.json').write_text('{"loss": "x", "step": "y"}')
    for name in ('image.jpg', 'images/1.png', 'images/2.jpg'):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)).save(name)
    Path('cut.jpg').write_bytes(Path('image.jpg').read_bytes()[:300])
    Path('video.mp4').write_text('no video')
    yield folder
    os.chdir(before)


# ------------------------------------------------------------------------------------------------------ command lines


VALID = {
    'config': ['detector.py', 'classifier.py'],
    'checkpoint': ['detector.pth', 'classifier.pth', 'work'],
    'image': ['image.jpg'],
    'input': ['image.jpg', 'images'],
    'logs': ['work', 'work/1/vis_data/scalars.json'],
    'source': ['detector.pth', 'classifier.pth'],
    'target': ['out.pth', 'out.safetensors'],
    'sweep': ['sweep.py'],
    'out': ['out.png', 'out.pdf', 'out.onnx', 'out', 'out.pkl', 'out.md'],
    'model': ['detector.py', 'tiny', 'small'],
    'work_dir': ['ran'],
    'metric': ['coco/bbox_mAP'],
    'head': ['mean', 'each', '1'],
    'image_size': ['32', '48'],
    'train': ['0', '1', '2'],
    'val': ['0', '1', '2'],
    'shape': ['64', '96', '32'],
    'sides': ['32', '64'],
    'images': ['1', '2'],
}
FILES = [
    'gone.py', 'gone/gone.pth', 'text.txt', 'text.pth', 'text.py', 'raising.py', 'empty.py', 'some.py', 'strange.py',
    'other.pth', 'images', 'empty', 'work', 'scalars.json', 'image.jpg', 'cut.jpg', 'video.mp4', 'detector.pth',
    'detector.py', 'classifier.py', 'sweep.py', '', '.', '~', '/dev/null', '/proc/1/mem', '/proc/none.py',
    'text.txt/below.png', 'x' * 300, 'x' * 300 + '.png', 'ü ñ.py', '\udcff.py', '\udcff.png', 'http://',
    'http://127.0.0.1:9/a.pth', 's3://a/b.pth', 'http://[.pth', 'torchvision://resnet18', '%s{x}.png',
]  # fmt: skip
NUMBERS = ['1', '2', '0', '-1', '7', '1.5', 'x', '', 'nan', 'inf', '-inf', '1e400', '9' * 25, '٣', '1_0', ' 1']
OPTIONS = [
    'a', 'a=b', '=', '=1', 'a=', 'model=1', 'model=None', 'model.backbone=None', 'model.backbone.arch=tiny',
    'data_root=gone', 'data_root=', 'data_root=1', 'model.backbone.out_indices=(0,1',
    'model.backbone.out_indices=(0,1)', 'x.y.z=1', '.=1', '..=1', 'model.=1', 'model..backbone=1', 'model.0.x=1',
    'train_dataloader.batch_size=0', 'train_dataloader.batch_size=x', 'train_dataloader.batch_size=None',
    'train_dataloader=None', 'test_dataloader=None', 'val_dataloader=None', 'train_dataloader.dataset=None',
    'test_dataloader.dataset.pipeline=[]', 'test_dataloader.dataset.pipeline.0.type=Nope',
    'test_dataloader.dataset.pipeline.99.type=Nope', 'test_dataloader.dataset.type=Nope',
    'test_dataloader.dataset=[1]', 'model.backbone.init_cfg=1', 'model.backbone.init_cfg.type=Pretrained',
    'model.backbone.init_cfg.checkpoint=other.pth', 'model.type=Nope', 'model.bbox_head=None',
    'model.bbox_head.num_classes=2', 'model.bbox_head.num_classes=x', 'model.test_cfg=None',
    'model.data_preprocessor=None', 'model.neck.in_channels=[8]', 'optim_wrapper=None', 'optim_wrapper.type=Nope',
    'optim_wrapper.optimizer.type=Nope', 'optim_wrapper.optimizer.lr=x', 'optim_wrapper.optimizer.lr=-1',
    'optim_wrapper.optimizer.nope=1', 'train_cfg=None', 'train_cfg.max_epochs=x', 'train_cfg.max_epochs=-1',
    'train_cfg.type=Nope', 'train_cfg.by_epoch=x', 'param_scheduler=[]', 'param_scheduler=1',
    'param_scheduler.0.type=Nope', 'param_scheduler.0.end=-5', 'default_scope=nope', 'default_scope=mmseg',
    'test_evaluator=None', 'val_evaluator=None', 'test_evaluator.type=Nope', 'test_evaluator.metric=nope',
    'test_evaluator.ann_file=text.txt', 'default_hooks=None', 'default_hooks.checkpoint=None',
    'default_hooks.checkpoint.interval=0', 'default_hooks.logger.interval=0', 'default_hooks.nope=1',
    'custom_hooks=1', 'custom_hooks=[1]', 'randomness.seed=x', 'randomness=1', 'work_dir=text.txt', 'work_dir=1',
    'launcher=nope', 'env_cfg=1', 'env_cfg.nope=1', 'log_level=nope', 'log_level=DEBUG', 'load_from=gone.pth',
    'load_from=other.pth', 'load_from=detector.pth', 'load_from=1', 'resume=True', 'visualizer=None',
    'visualizer.type=Nope', 'auto_scale_lr=1', 'tta_model=1', 'runner_type=Nope', 'experiment_name=a/b',
    'model_wrapper_cfg=1', 'cfg=1', 'train_dataloader.sampler.type=Nope', 'train_dataloader.num_workers=-1',
    'train_dataloader.nope=1', 'load=1', 'train_dataloader.dataset.indices=0', 'train_dataloader.dataset.indices=x',
    'train_dataloader.dataset.indices=10**9', 'train_dataloader.dataset.ann_file=text.txt',
    'test_dataloader.dataset.ann_file=1', 'model.backbone.drop_path_rate=2', 'train_dataloader.dataset.metainfo=1',
    'train_dataloader.dataset.metainfo.classes=circle', 'model.head.num_classes=0',
    'test_dataloader.dataset.metainfo.classes=[1,2,3]', 'model.backbone.frozen_stages=9', 'model.backbone.nope=1',
    'val_interval=1', 'train_cfg.val_interval=0', 'log_processor=1', 'log_processor.window_size=x', '[[[[', 'a=[[[[',
    'a="', 'model.backbone.pretrain_img_size=[1,2,3]', 'model.backbone.in_channels=4', 'a=' + '[' * 500, 'ü=ü',
]  # fmt: skip


def parser_of(tool: ModuleType) -> argparse.ArgumentParser:
    """Returns the argument parser of a tool."""

    class Found(Exception):  # noqa: N818
        pass

    def find(parser: argparse.ArgumentParser, *_):
        raise Found(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, 'parse_args', find)
        with pytest.raises(Found) as found:
            tool.main([])
    return found.value.args[0]


@st.composite
def value(draw, action: argparse.Action) -> str:
    valid = VALID.get(action.dest, [])
    if action.dest == 'cfg_options':
        return draw(st.sampled_from(OPTIONS))
    if action.choices:
        return draw(st.sampled_from([*map(str, action.choices)] * 3 + ['nope', '', 'NONE']))
    if action.type is int or action.type is float or action.dest in ('train', 'val', 'image_size'):
        usual = valid or ['1', '2']
        odd = ['-1', 'x', '1.5', ''] if action.dest in ('train', 'val', 'image_size') else NUMBERS
        return draw(st.one_of(*[st.sampled_from(usual)] * 3, st.sampled_from(odd)))
    odd = st.one_of(
        st.sampled_from(FILES), st.text(max_size=6).filter(lambda text: '\0' not in text and '\n' not in text)
    )
    return draw(st.one_of(*[st.sampled_from(valid)] * 4, odd) if valid else st.one_of(odd, st.sampled_from(NUMBERS)))


@st.composite
def words(draw, action: argparse.Action) -> list[str]:
    """The values of an argument, sometimes too many or too few."""
    if action.nargs == 0:
        return ['x'] if draw(st.integers(0, 30)) == 0 else []
    number = {None: 1, '?': draw(st.integers(0, 1)), '+': draw(st.integers(1, 3)), '*': draw(st.integers(0, 2))}.get(
        action.nargs, action.nargs
    )
    number += draw(st.sampled_from([0] * 15 + [1, -1]))
    return [draw(value(action)) for _ in range(max(0, number))]


@st.composite
def command_lines(draw, name: str) -> list[str]:
    parser, argv = parser_of(importlib.import_module(f'tools.{name}')), []
    actions = [action for action in parser._actions if action.dest not in ('help', *LEFT_OUT.get(name, ()))]
    for action in actions:
        if isinstance(action, argparse._SubParsersAction):
            verb = draw(st.sampled_from(list(action.choices)))
            argv.append(verb)
            actions = [action for action in action.choices[verb]._actions if action.dest != 'help']
            break
    flags = [action for action in actions if action.option_strings]
    chosen = draw(st.lists(st.sampled_from(flags), max_size=3, unique=True)) if flags else []
    chosen += [action for action in flags if action.required and draw(st.integers(0, 9)) and action not in chosen]
    chosen += [
        action for action in flags if action.dest == 'cfg_options' and draw(st.booleans()) and action not in chosen
    ]
    places = [
        action for action in actions if not action.option_strings and not isinstance(action, argparse._SubParsersAction)
    ]
    for action in places:
        if draw(st.integers(0, 25)):
            argv += draw(words(action))
    for action in chosen:
        argv += [draw(st.sampled_from(action.option_strings)), *draw(words(action))]
    odd = draw(st.integers(0, 14))
    if odd == 0 and argv:  # an extra letter
        place = draw(st.integers(0, len(argv) - 1))
        argv[place] += draw(st.sampled_from('x=-./'))
    elif odd == 1:
        argv.insert(
            draw(st.integers(0, len(argv))),
            draw(st.sampled_from(['--nope', '-x', '--', '-', '--help', '--nope=1', '-1'])),
        )
    return argv


# ------------------------------------------------------------------------------------------------------------ outcomes


def run(name: str, argv: list[str]) -> None:
    tool = importlib.import_module(f'tools.{name}')
    forget_runs()
    printed, errors = (io.TextIOWrapper(io.BytesIO(), encoding='utf-8', write_through=True) for _ in range(2))
    errors.reconfigure(errors='backslashreplace')  # as Python's own is
    environment = dict(os.environ)
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        try:
            code = tool.main(argv)
        except SystemExit as stop:
            code = stop.code
        finally:
            os.environ.clear()
            os.environ.update(environment)
    printed, errors = (stream.buffer.getvalue().decode() for stream in (printed, errors))
    assert code in (0, 1, 2), code
    assert 'Traceback' not in printed + errors
    lines = errors.rstrip('\n').split('\n')  # not splitlines(): made-up names have other separators
    reported = [line for line in lines if re.match(r'([\w.-]+(\.py)?( \w+)?: )?error: ', line)]
    if code == 2:
        assert len(reported) == 1, errors
        assert lines[-1] == reported[0]
        assert len(reported[0]) < 1500
    else:
        assert not reported
        if name not in NO_JSON and 'usage: ' not in printed:
            json.loads(printed.splitlines()[-1])


@pytest.mark.parametrize('name', TOOLS)
def test_any_command_line(name, folder):
    slow = name in ('train', 'test', 'demo', 'attention', 'check_dataset', 'plot')

    @cases('command lines', 80 if slow else 40, quick=3)(st.data())
    def any_command_line(data):
        argv = [*BEFORE.get(name, ()), *data.draw(command_lines(name), label='argv'), *AFTER.get(name, ())]
        run(name, argv)

    any_command_line()


@pytest.mark.parametrize('name', TOOLS)
def test_help(name, folder):
    run(name, ['--help'])
    run(name, ['--nope'])
