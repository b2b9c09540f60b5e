"""The commands that README.md, tools/README.md and docs/ show: each is run, or parsed by its tool."""

import ast
import importlib
import json
import re
import runpy
import shlex
import shutil
import signal
import sys
import types
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from pvt_mm.apis import doctor
from pvt_mm.apis.config import load_config
from pvt_mm.checkpoint.download import cached_path
from pvt_mm.checkpoint.integrity import verify
from pvt_mm.deploy import export
from pvt_mm.models import PVTv2
from pvt_mm.models.archs import IMAGENET_V2
from tests import layouts
from tests.conftest import ROOT, TINY_ARCH, TINY_ARCH_V2, forget_runs
from tests.test_serving.models import BOXES, save_model
from tools import download

PAGES = sorted(
    [
        *(ROOT / f'{name}.md' for name in ('README', 'CONTRIBUTING', 'tools/README')),
        *(ROOT / 'docs').glob('*.md'),
        *ROOT.glob('configs/*/README.md'),
    ]
)
# A detector of configs/ on the shapes, so small that an epoch takes a second.
SMALL = """
_base_ = '{config}'
backbone = dict(arch=dict(_delete_=True, **{arch}), drop_path_rate=0.0, init_cfg=None)
model = dict(
    backbone=backbone,
    neck=dict(in_channels=[8, 16, 24, 32], out_channels=8),
    bbox_head=dict(in_channels=8, feat_channels=32, stacked_convs=1, num_classes=3),
    test_cfg=dict(score_thr=0.0, max_per_img=5),
)
load, resize, pack = dict(type='LoadImageFromFile'), dict(type='Resize', scale=(64, 64)), dict(type='PackDetInputs')
pipeline = [load, dict(type='LoadAnnotations', with_bbox=True), resize, pack]
loading = dict(num_workers=0, persistent_workers=False)
shapes = dict(data_root='{root}/', metainfo=dict(classes=('circle', 'square', 'triangle')), pipeline=pipeline)
train_dataloader = dict(batch_size=2, dataset=dict(indices=4, **shapes), **loading)
val_dataloader = dict(batch_size=2, dataset=dict(indices=2, **shapes), **loading)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='{root}/annotations/instances_val2017.json')
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=1, val_interval=1)
load_from = None
"""
STAND_INS = (
    'demo/retinanet_shapes',
    'retinanet/pvt_s_640_1x',
    'heads/pvt_s_atss_1x',
    'own_data/detection_pvt_v2',
)
# What the capitals of the documented commands stand for.
WORDS = dict(CONFIG='mine.py', CHECKPOINT='mine.pth', DIR='export', FOLDER='photos', IMAGE='photos/1.jpg')
# Commands that others need to have run.
BEFORE = {
    'predictions.pkl': 'tools/test.py CONFIG CHECKPOINT --out predictions.pkl',
    'model.onnx': 'tools/export_onnx.py CONFIG CHECKPOINT --out model.onnx --preprocess',
}


def readmes_commands() -> list[str]:
    """Returns the commands of the table "I want to ..."."""
    section = (ROOT / 'README.md').read_text().split('## I want to ...\n')[1].split('\n## ')[0]
    rows = [line.split(' | ')[1] for line in section.splitlines() if line.startswith('| ') and '`' in line]
    return [re.match(r'`(.+?)`', row)[1] for row in rows]


COMMANDS = readmes_commands()


def test_the_table_is_read():
    assert len(COMMANDS) >= 18
    assert {command.split()[0] for command in COMMANDS} >= {
        'tools/train.py',
        'tools/test.py',
        'tools/demo.py',
        'python',
    }


@pytest.fixture(scope='module')
def folder(shapes, tmp_path_factory) -> Path:
    """The working directory: configs of the same names that are small, data, images and weights."""
    folder = tmp_path_factory.mktemp('commands')
    shutil.copytree(ROOT / 'configs', folder / 'configs', ignore=shutil.ignore_patterns('__pycache__'))
    for name in STAND_INS:
        config = ROOT / f'configs/{name}.py'
        small = SMALL.format(config=config, arch=TINY_ARCH_V2 if 'v2' in name else TINY_ARCH, root=shapes)
        (folder / f'configs/{name}.py').write_text(small)
    shutil.copy(folder / 'configs/demo/retinanet_shapes.py', folder / 'mine.py')
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(load_config(str(folder / 'mine.py')).model)
    torch.save({'state_dict': model.state_dict()}, folder / 'mine.pth')
    layouts.roboflow(shapes, folder / 'export')
    (folder / 'photos').mkdir()
    for i, image in enumerate(sorted((shapes / 'val2017').iterdir())[:2]):
        shutil.copy(image, folder / f'photos/{i}.jpg')
    return folder


class Writer:
    """In place of TensorBoard's, which need not be installed."""

    scalars: list[str]

    def __init__(self, folder: str):
        Writer.scalars = []

    def add_scalar(self, name: str, *_: object) -> None:
        self.scalars.append(name)

    def add_text(self, *_: object) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _tensorboard(monkeypatch):
    for name, content in {'tensorboard': {}, 'torch.utils.tensorboard': {'SummaryWriter': Writer}}.items():
        module = types.ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)


def run(command: str, monkeypatch: pytest.MonkeyPatch) -> int | None:
    """Runs a command of README.md in this process, and returns its exit code."""
    forget_runs()
    words = [WORDS.get(word, word) for word in shlex.split(command)]
    if words[0] == 'python':
        import mmdet

        tool = words[1].replace('$MM', f'{mmdet.__path__[0]}/.mim/tools/analysis_tools')
        monkeypatch.setattr(sys, 'argv', words[1:])
        runpy.run_path(tool, run_name='__main__')
        return 0
    tool = importlib.import_module(words[0].removesuffix('.py').replace('/', '.'))
    return tool.main(words[1:])


def export_stand_in(model, config, path, settings, about) -> dict:
    assert (settings.part, settings.preprocess) == ('model', True)
    save_model(Path(path), 'detection', BOXES, uint8=True)
    return dict(megabytes=1)


def serve_stand_in(self, sockets: list) -> None:
    print(f'served on {sockets[0].getsockname()}')
    sockets[0].close()


@pytest.mark.parametrize('command', COMMANDS, ids=range(len(COMMANDS)))
def test_readmes_command_runs(command, folder, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    weights = (folder / 'mine.pth').read_bytes()
    monkeypatch.setattr(plt, 'show', lambda *_, **__: None)
    monkeypatch.setattr(doctor, 'CHECKS', doctor.CHECKS[:1])  # all of them take 10 s
    Path('weights').mkdir(exist_ok=True)
    monkeypatch.setattr(download, 'fetch', lambda url, path, report: Path(path).write_bytes(weights))
    monkeypatch.setattr(export, 'export_model', export_stand_in)  # takes a minute
    if 'serve' in command:
        monkeypatch.setattr('uvicorn.Server.run', serve_stand_in)
        monkeypatch.setattr(signal, 'signal', lambda *_: None)
    for needed, first in BEFORE.items():
        if needed in command and command != first and not (folder / needed).exists():
            assert run(first, monkeypatch) == 0
    shutil.rmtree('work_dirs', ignore_errors=True)
    capfd.readouterr()
    assert run(command, monkeypatch) in ((0, 1) if 'doctor' in command else (0,))
    printed = capfd.readouterr().out
    check(command, folder, printed)


def check(command: str, folder: Path, printed: str) -> None:
    """Asserts that a command did what README.md says it does."""
    work = next(iter(folder.glob('work_dirs/*')), None)
    if 'tools/train.py' in command:
        checkpoint = next(work.glob('epoch_*.pth'))
        verify(checkpoint)
        used = Config.fromfile(next(work.glob('*.py')))
    if 'EMAHook' in command:
        assert 'ema_state_dict' in torch.load(checkpoint, weights_only=False)
    elif 'EarlyStoppingHook' in command:
        assert used.default_hooks.stop.type == 'pvt_mm.EarlyStoppingHook'
        assert used.default_hooks.stop.patience == 3
    elif '--vis' in command:
        assert {'loss', 'coco/bbox_mAP'} <= set(Writer.scalars)
    elif 'with_cp' in command:
        assert used.model.backbone.with_cp
        assert used.optim_wrapper.accumulative_counts == 2
    elif '--weights' in command:
        assert used.load_from == 'mine.pth'
    elif '--data' in command:
        assert set(used.train_dataloader.dataset.metainfo.classes) == {'circle', 'square', 'triangle'}
    elif 'heads' in command:
        assert used.model.type == 'ATSS'
    elif 'classwise' in command:
        assert all(f'coco/{name}_precision' in json.loads(printed.splitlines()[-1]) for name in ('circle', 'square'))
    elif '--out predictions.pkl' in command:
        assert (folder / 'predictions.pkl').exists()
    elif 'confusion' in command:
        assert (folder / 'matrix/confusion_matrix.png').exists()
    elif 'browse' in command:
        assert len(list((folder / 'browsed').glob('*'))) == 4
    elif 'demo.py FOLDER' in command:
        assert len(json.loads((folder / 'drawn/predictions.json').read_text())['images']) == 2
    elif 'download' in command:
        assert len(list((folder / 'weights').glob('*.pth'))) == 2
    elif 'export_onnx' in command:
        assert (folder / 'model.onnx').exists()
    elif 'predict_onnx' in command:
        assert len(json.loads((folder / 'drawn/predictions.json').read_text())['images']) == 2
    elif 'serve' in command:
        assert "served on ('127.0.0.1', 8000)" in printed
    elif 'dry-run' in command:
        assert 'pvt_s_1x-seed0' in printed
        assert 'pvt_v2_b2_1x-seed0' in printed


def test_readmes_three_lines_of_python_run(folder, monkeypatch):
    """As they stand, but for the size of the model and the weights that would be downloaded."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv('TORCH_HOME', str(folder / 'torch'))
    forget_runs()
    shutil.copy('photos/1.jpg', 'image.jpg')
    shutil.copytree('export', 'data/my_export')
    path = Path(cached_path(IMAGENET_V2['b2']))
    path.parent.mkdir(parents=True)
    torch.save(PVTv2('b2').state_dict(), path)
    example = (ROOT / 'README.md').read_text().split('```python\n')[1].split('```')[0]
    names = {}
    exec(example, names)
    assert {'coco/bbox_mAP', 'config', 'checkpoint'} <= set(names['result'])
    assert all(set(found) >= {'label', 'score', 'bbox'} for found in names['boxes'].objects)
    loaded, saved = names['backbone'].state_dict(), torch.load(path)
    assert all(torch.equal(loaded[key], saved[key]) for key in saved)
    assert [level.shape[1] for level in names['backbone'](torch.zeros(1, 3, 64, 64))] == [64, 128, 320, 512]


def own_datas_example(text: str) -> str:
    """Returns the block of Python in docs/own_data.md that contains a text."""
    blocks = (ROOT / 'docs/own_data.md').read_text().split('```python\n')[1:]
    return next(block.split('```')[0] for block in blocks if text in block)


def test_own_datas_example_of_four_channels_takes_them(folder, monkeypatch):
    monkeypatch.chdir(folder)
    Path('four_channels.py').write_text(own_datas_example('in_channels=4'))
    config, small = load_config('four_channels.py'), load_config('configs/own_data/detection_pvt_v2.py')
    for split in ('train', 'val', 'test'):
        pipelines = [one[f'{split}_dataloader'].dataset.pipeline for one in (config, small)]
        assert pipelines[0] == [dict(type='LoadImageFromFile', color_type='unchanged'), *pipelines[1][1:]]
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(config.model)
    inputs = model.data_preprocessor({'inputs': [torch.zeros(4, 64, 64, dtype=torch.uint8)]})['inputs']
    assert [level.shape[1] for level in model.backbone(inputs)] == [8, 16, 24, 32]


def test_own_datas_settings_without_data_are_a_config(folder, monkeypatch):
    monkeypatch.chdir(folder)
    Path('by_hand.py').write_text(own_datas_example('classes = '))
    config = load_config('by_hand.py')
    for split in ('train', 'val', 'test'):
        dataset = config[f'{split}_dataloader'].dataset
        assert (dataset.data_root, dataset.metainfo.classes) == ('data/my_export/', ('circle', 'square', 'triangle'))
    assert config.model.bbox_head.num_classes == 3
    assert config.test_evaluator.ann_file.startswith('data/my_export/')


# ------------------------------------------------------------------------------------- the commands of all other pages


def documented() -> Iterator[tuple[str, str]]:
    """Yields the page and each command of a tool in Python that it shows, in a block of code or in a line of text."""
    for page in PAGES:
        text = page.read_text().replace('\\\n', ' ')
        text = re.sub(r'<!--.*?-->', '', text, flags=re.DOTALL)
        parts = text.split('```')
        blocks, prose = '\n'.join(parts[1::2]), '\n'.join(parts[::2])
        indented = [line for line in prose.splitlines() if line.startswith('    ')]
        inline = re.findall(r'`([^`]+)`', '\n'.join(line for line in prose.splitlines() if line[:4] != '    '))
        for line in [*blocks.splitlines(), *indented, *(command for code in inline for command in code.split(';'))]:
            line = re.sub(r'^(\$ |sbatch |python )', '', ' '.join(line.split())).split(' #')[0]
            if re.match(r'tools/[a-z_]+\.(py|sh|sbatch)( |$)', line):
                yield str(page.relative_to(ROOT)), line.replace('\\|', '|')


DOCUMENTED = {}
for page, command in documented():
    DOCUMENTED.setdefault(page, set()).add(command)


def test_the_pages_are_read():
    assert len(DOCUMENTED) >= 10
    assert sum(map(len, DOCUMENTED.values())) >= 90
    in_a_line_of_text = 'tools/download.py configs/own_data/detection_pvt_v2.py'
    assert in_a_line_of_text in DOCUMENTED['docs/own_data.md']


@pytest.mark.parametrize('page', sorted(DOCUMENTED))
def test_a_documented_command_is_what_its_tool_takes(page, capsys):
    """A flag that was renamed ends the tool with a usage error; a config that was renamed is named here."""
    for command in sorted(DOCUMENTED[page]):
        tool, *arguments = shlex.split(command)
        assert (ROOT / tool).exists(), command
        for word in arguments:
            if word.startswith('configs/') and word.endswith('.py') and '*' not in word:
                assert (ROOT / word).exists(), command
        if not tool.endswith('.py') or not arguments:  # the name of a tool
            continue
        parse = importlib.import_module(tool.removesuffix('.py').replace('/', '.')).parse_args
        try:
            parse(arguments)
        except SystemExit:
            pytest.fail(f'{page}: {command}: {capsys.readouterr().err}')


# What docs/troubleshooting.md quotes of libraries, and its other words of code. All else are messages of this project.
OF_LIBRARIES = {
    "No module named 'mmcv._ext'",
    'MMCV==... is used but incompatible. Please install mmcv>=...',
    'implementation for device cuda:0 not found',
    'no kernel image is available for execution on the device',
    'undefined symbol',
    "No module named 'pkg_resources'",
    'numpy.dtype size changed',
    'A module that was compiled using NumPy 1.x cannot be run in NumPy 2',
    '... is not in the mmengine::model registry',
    'Weights only load failed',
    'unexpected key in source state_dict: ...',
    'need at least one array to concatenate',
    *(f"KeyError: '{key}'" for key in ('mask', 'segmentation', 'iscrowd', 'area', 'height')),
    'CUDA error: device-side assert triggered',
    'Assertion `t >= 0 && t < n_classes` failed',
    'The `num_classes` (...) in ... does not matches the length of `CLASSES` ...',
    'loss',
    'nan',
    'loss_bbox: 0.0000',
    '--resume',
    'DataLoader worker (pid ...) is killed by signal: Bus error',
    'DataLoader worker (pid ...) is killed by signal: Killed',
    'unable to open shared memory object',
    'No space left on device (28)',
    'Too many open files',
    'Expected more than 1 value per channel when training',
    'SyncBN',
    'SyncBatchNorm expected input tensor to be on GPU',
    'AP',
    'mIoU',
    'IoU',
    'The testing results of the whole dataset is empty',
    'Address already in use',
    'Expected to have finished reduction in the prior iteration',
    'onnx',
    'onnxscript',
}


def messages() -> Iterator[str]:
    """Yields every text of the package and of the tools; what a message is filled with is a NUL."""
    for path in (*(ROOT / 'pvt_mm').rglob('*.py'), *(ROOT / 'tools').glob('*.py')):
        for node in ast.walk(ast.parse(path.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node] if isinstance(node, ast.Constant) else []
            text = ''.join(str(part.value) if isinstance(part, ast.Constant) else '\0' for part in parts)
            yield text.strip().removeprefix('error: ')


def test_troubleshooting_quotes_what_the_code_says():
    """Each quote is a whole message, in which ``...`` stands for anything."""
    rows = re.findall(r'^\| (.+?) \| ', (ROOT / 'docs/troubleshooting.md').read_text(), re.MULTILINE)
    quotes = {a or b for row in rows for a, b in re.findall(r'``(.+?)``|`(.+?)`', row)}
    assert quotes > OF_LIBRARIES
    assert len(quotes - OF_LIBRARIES) >= 18
    said = set(messages())
    for quote in quotes - OF_LIBRARIES:
        pattern = re.compile('.*?'.join(map(re.escape, quote.split('...'))), re.DOTALL)
        assert any(map(pattern.fullmatch, said)), quote


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r'\]\(([^)#\s]+)(?:#[^)]*)?\)', page.read_text()):
        if '://' not in target:
            assert (page.parent / target).exists(), f'{page.relative_to(ROOT)} links to {target}'
