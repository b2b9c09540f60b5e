"""tools/train.py --data and pvt_mm.train: from the user's data to a trained model in one command."""

import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from pvt_mm.apis import training
from pvt_mm.apis.config import load_config
from pvt_mm.apis.own_data import class_settings
from pvt_mm.apis.training import train
from pvt_mm.checkpoint.reader import read_checkpoint
from pvt_mm.datasets.shapes import CLASSES
from pvt_mm.utils.errors import InputError
from tests.conftest import ROOT, TINY_ARCH, TINY_ARCH_LINEAR, TINY_ARCH_V2, forget_runs
from tests.layouts import LAYOUTS
from tools import test as test_tool
from tools import train as train_tool

BACKBONE = f'dict(arch=dict(_delete_=True, **{TINY_ARCH}), drop_path_rate=0.0, init_cfg=None)'
V2, LINEAR, CLASSIFIER = (
    f'dict(_delete_=True, type="pvt_mm.PVTv2", arch={arch}, drop_path_rate=0.0, out_type="{out_type}")'
    for arch, out_type in ((TINY_ARCH_V2, 'featmap'), (TINY_ARCH_LINEAR, 'featmap'), (TINY_ARCH_V2, 'avg_featmap'))
)
NECK = 'dict(in_channels=[8, 16, 24, 32], out_channels=16)'
# Configs of COCO, ADE20K and ImageNet, with a model that is quick.
CONFIGS = dict(
    detector=f"""
_base_ = '{ROOT}/configs/retinanet/pvt_t_1x.py'
model = dict(
    backbone={BACKBONE},
    neck={NECK},
    bbox_head=dict(in_channels=16, feat_channels=16, stacked_convs=1),
    test_cfg=dict(score_thr=0.0),
)
""",
    masks=f"""
_base_ = '{ROOT}/configs/mask_rcnn/pvt_t_1x.py'
roi = dict(out_channels=16)
head = dict(in_channels=16, conv_out_channels=16, num_convs=1)
model = dict(
    backbone={LINEAR},
    neck={NECK},
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=roi,
        mask_roi_extractor=roi,
        bbox_head=dict(in_channels=16, fc_out_channels=32),
        mask_head=head,
    ),
    test_cfg=dict(rcnn=dict(score_thr=0.0, max_per_img=10)),
)
""",
    segmentor=f"""
_base_ = '{ROOT}/configs/semantic_fpn/pvt_t_80k.py'
model = dict(backbone={V2}, neck={NECK}, decode_head=dict(in_channels=[16] * 4, channels=16))
""",
    classifier=f"""
_base_ = '{ROOT}/configs/classification/pvt_t_300e.py'
model = dict(backbone={CLASSIFIER}, head=dict(in_channels=32))
""",
)
METRICS = dict(detector='coco/bbox_mAP', masks='coco/segm_mAP', segmentor='mIoU', classifier='accuracy/top1')
NO_WORKERS = {f'{split}_dataloader.num_workers': 0 for split in ('train', 'val', 'test')}


@pytest.fixture(autouse=True)
def _configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in CONFIGS.items():
        Path(f'{name}.py').write_text(text)


def metrics_of_test(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def losses(work_dir: str) -> dict[int, float]:
    lines = [json.loads(line) for path in Path(work_dir).glob('*/vis_data/scalars.json') for line in path.open()]
    return {line['step']: line['loss'] for line in lines if 'loss' in line}


@pytest.mark.parametrize('name', CONFIGS)
def test_one_call_trains_and_its_config_tests_and_trains_alike(name, shapes, capsys):
    data = str(shapes / 'classification' if name == 'classifier' else shapes)
    settings = {**NO_WORKERS, 'default_hooks.logger.interval': 1}
    more = dict(batch=4, epochs=1, size=64, weights='none', seed=1, cfg_options=settings)
    result = train(f'{name}.py', data, 'run', **more)
    assert 0 <= result[METRICS[name]] <= 100
    assert Path(result['checkpoint']).is_file()
    assert Path(result['config']) == Path(f'run/{name}.py')
    log = next(Path('run').glob('*/*.log')).read_text()
    assert 'starting from random weights' in log
    assert '12 training images, 3 steps: 1 epoch of 3 steps' in log
    summary = log[log.index('starting from random weights') :]  # after the config
    assert 'Config:' not in summary
    length = '3 steps' if name == 'segmentor' else '1 epoch of 3 steps'
    assert f'training: {length}, with a line in the log every step\n' in summary
    first = re.search(r'the first step, which is often the slowest, took (.*) s; 2 more steps of that', summary)
    assert 0 < float(first.group(1)) < 60
    assert '(the square root of the ratio' in log
    assert f'tools/test.py run/{name}.py run/{Path(result["checkpoint"]).name}' in log

    config = load_config(result['config'])
    classes = config.train_dataloader.dataset.metainfo.classes
    assert len(classes) == 4 if name == 'segmentor' else classes == CLASSES
    assert config.auto_scale_lr.base_batch_size == 4
    assert (config.load_from, config.resume, config.launcher) == (None, False, 'none')

    forget_runs()
    capsys.readouterr()
    assert test_tool.main([result['config'], 'run', '--work-dir', 'tested']) == 0  # of its last checkpoint
    assert metrics_of_test(capsys)[METRICS[name]] == pytest.approx(result[METRICS[name]])
    if name == 'detector':
        forget_runs()
        assert train_tool.main([result['config'], '--work-dir', 'again']) == 0
        assert losses('again') == losses('run')
        assert len(losses('run')) == 3


class BuiltError(Exception):
    """Raised with the config that a runner would be built from."""


@pytest.fixture
def built(monkeypatch):
    def stop(config):
        raise BuiltError(config)

    monkeypatch.setattr(training, 'build_runner', stop)

    def run(*arguments: str) -> Config:
        with pytest.raises(BuiltError) as stopped:
            train_tool.main([*arguments, '--weights', 'none', '--size', '64'])
        return stopped.value.args[0]

    return run


@pytest.mark.parametrize(
    ('name', 'layout'),
    [
        ('detector', 'roboflow'),
        ('detector', 'label_studio'),
        ('masks', 'cvat'),
        ('segmentor', 'mmseg'),
        ('segmentor', 'color_masks'),
        ('classifier', 'one_folder'),
    ],
)
def test_every_layout_needs_one_command(name, layout, shapes, tmp_path, built):
    paths = LAYOUTS[layout](shapes, tmp_path / 'mine')
    config = built(f'{name}.py', '--data', *paths)
    datasets = [config[f'{split}_dataloader'].dataset for split in ('train', 'val', 'test')]
    assert len({str(dataset.metainfo) for dataset in datasets}) == 1
    classes = datasets[0].metainfo.classes
    assert len(classes) == 4 if name == 'segmentor' else classes == CLASSES
    assert {part[key] for _, part, key in class_settings(config.model)} == {len(classes)}


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['detector.py', '--batch', '0'], '--batch 0: it must be a whole number from 1'),
        (['detector.py', '--epochs', '-1'], '--epochs -1: it must be a whole number from 1'),
        (['detector.py', '--size', '31'], '--size 31: it must be a whole number of pixels from 32'),
        (['detector.py', '--weights', 'gone.pth'], '--weights gone.pth: there is no such file'),
        (['detector.py', '--data', 'gone'], 'gone does not exist'),
        (['detector.py', '--data', 'SHAPES', '--cfg-options', 'data_root=x'], '--data and --cfg-options data_root'),
        (['segmentor.py', '--data', 'SHAPES/classification'], 'and the config needs images with label maps'),
        (['masks.py', '--data', 'BOXES'], 'masks.py predicts masks, and not all objects of --data have one: use'),
    ],
)
def test_wrong_values_are_one_line_before_anything_is_written(arguments, message, shapes, capsys):
    boxes = json.loads((shapes / 'annotations/instances_train2017.json').read_text())
    for annotation in boxes['annotations']:
        annotation.pop('segmentation')
    Path('boxes.json').write_text(json.dumps(boxes))
    index = arguments.index('BOXES') if 'BOXES' in arguments else len(arguments)
    arguments = [*arguments[:index], *(['boxes.json', str(shapes / 'train2017')] if 'BOXES' in arguments else [])]
    assert train_tool.main([argument.replace('SHAPES', str(shapes)) for argument in arguments]) == 2
    (error,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith('error:'))
    assert message in error
    assert not Path('work_dirs').exists()


def test_options_of_the_command_line_win(shapes, built):
    lr = ['--cfg-options', 'optim_wrapper.optimizer.lr=0.5', 'train_dataloader.num_workers=0']
    config = built('detector.py', '--data', str(shapes), '--batch', '50', *lr, 'val_evaluator.classwise=True')
    assert config.optim_wrapper.optimizer.lr == 0.5
    assert config.auto_scale_lr.base_batch_size == 16  # as nothing is scaled
    assert config.val_evaluator.classwise
    assert config.train_dataloader.batch_size == 12  # of 12 images
    assert not config.train_dataloader.persistent_workers
    assert built('detector.py', '--data', str(shapes), '--no-scale-lr').optim_wrapper.optimizer.lr == 1e-4


def test_training_starts_from_published_weights_whose_head_is_of_other_classes(shapes, monkeypatch, capsys):
    """They are those beside the config, and are not there a second time for the backbone."""
    train('detector.py', str(shapes), 'first', epochs=1, batch=4, size=64, weights='none', cfg_options=NO_WORKERS)
    published = torch.load('first/epoch_1.pth', weights_only=False)
    for name in ('weight', 'bias'):
        head = published['state_dict'][f'bbox_head.retina_cls.{name}']
        published['state_dict'][f'bbox_head.retina_cls.{name}'] = torch.cat([head] * 2)
    torch.save({'state_dict': published['state_dict'], 'meta': {}}, 'published.pth')
    monkeypatch.setattr(training, 'first_download', lambda path: 'published.pth')
    Path('pretrained.py').write_text(
        "_base_ = 'detector.py'\n"
        "weights = dict(_delete_=True, type='Pretrained', checkpoint='https://nowhere.invalid/pvt.pth')\n"
        'model = dict(backbone=dict(init_cfg=weights))\n'
    )
    forget_runs()
    still = {**NO_WORKERS, 'optim_wrapper.optimizer.lr': 0.0}
    result = train('pretrained.py', str(shapes), 'second', epochs=1, batch=4, size=64, cfg_options=still)
    assert load_config(result['config']).load_from == 'published.pth'
    log = next(Path('second').glob('*/*.log')).read_text()
    assert 'size mismatch' not in log
    assert re.search(
        r'but initialized: bbox_head.retina_cls.weight \(\(27, .*\), there \(54, .*\)\), bbox_head.retina_cl', log
    )
    weights = read_checkpoint(result['checkpoint'])
    same = {key for key, value in weights.items() if torch.equal(value, published['state_dict'][key])}
    assert set(weights) - same == {'bbox_head.retina_cls.weight', 'bbox_head.retina_cls.bias'}
    with pytest.raises(
        InputError,
        match=r'^http://127.*: run tools/download.py .*, or give a file with --weights PATH or --cfg-options '
        'load_from=PATH, or [^,]* --weights none$',
    ):
        train('detector.py', str(shapes), 'third', size=64, weights='http://127.0.0.1:9/a.pth', cfg_options=NO_WORKERS)


def test_a_resumed_run_has_the_weights_of_an_uninterrupted_one(shapes):
    """With its split, and early stopping and averaged weights of a recipe."""
    Path('recipe.py').write_text(
        f"_base_ = ['detector.py', '{ROOT}/configs/_base_/own_data.py']\n"
        "stop = dict(type='pvt_mm.EarlyStoppingHook', monitor='coco/bbox_mAP', patience=2, min_delta=1)\n"
        'custom_hooks = [_base_.ema, stop]\n'
    )
    more = dict(data=str(shapes), batch=12, size=64, epochs=5, weights='none', seed=1, cfg_options=NO_WORKERS)
    whole = train('recipe.py', work_dir='whole', **more)
    assert Path(whole['checkpoint']).name == 'epoch_3.pth'  # two are not better than the first
    forget_runs()
    train('recipe.py', work_dir='part', **{**more, 'cfg_options': {**NO_WORKERS, 'train_cfg.max_epochs': 2}})
    forget_runs()
    part = train('recipe.py', work_dir='part', resume=True, **more)
    assert Path(part['checkpoint']).name == 'epoch_3.pth'
    expected = read_checkpoint(whole['checkpoint'])
    for key, value in read_checkpoint(part['checkpoint']).items():
        assert torch.equal(value, expected[key]), key


def test_a_run_on_other_data_needs_another_work_directory(shapes, tmp_path, capsys):
    data = shutil.copytree(shapes / 'classification', tmp_path / 'mine')
    command = ['classifier.py', '--weights', 'none', '--size', '32', '--epochs', '1', '--cfg-options', 'model.head.x=1']
    assert train_tool.main([*command, '--data', str(data)]) == 2  # a fault of the config, after data/ is written
    work_dir = Path('work_dirs/classifier_mine')
    record = (work_dir / 'data/own_data.json').read_bytes()
    other = [*command, '--data', str(shapes / 'classification'), '--work-dir', str(work_dir)]
    capsys.readouterr()
    assert train_tool.main(other) == 2
    assert f'{work_dir} has a run on other data: choose another --work-dir\n' in capsys.readouterr().err
    (work_dir / 'epoch_1.pth').touch()
    assert train_tool.main([*command, '--data', str(data)]) == 2
    assert 'has checkpoints of another run: add --resume to continue it, or choose' in capsys.readouterr().err
    assert (work_dir / 'data/own_data.json').read_bytes() == record


def test_mmdetections_tools_take_the_config_of_a_run(shapes, monkeypatch):
    import mmdet

    more = dict(data=str(shapes), batch=6, size=64, epochs=1, weights='none', cfg_options=NO_WORKERS)
    for number in (1, 2):  # the second in this process logs to its own folder
        result = train('detector.py', work_dir=f'run{number}', validate=False, **more)
        assert list(Path(f'run{number}').glob('*/vis_data/scalars.json'))
    assert Config.fromfile('run1/detector.py').visualizer.name == 'visualizer'
    tool = Path(mmdet.__file__).parent / '.mim/tools/analysis_tools/browse_dataset.py'
    monkeypatch.setattr(sys, 'argv', [str(tool), result['config'], '--not-show', '--output-dir', 'drawn'])
    forget_runs()
    runpy.run_path(str(tool), run_name='__main__')
    assert len(list(Path('drawn').glob('*'))) == 12


def test_an_unknown_option_is_named():
    with pytest.raises(
        TypeError, match=r'no option dta: did you mean data\? Its options are config, data, work_dir, ba'
    ):
        train('detector.py', dta='x')
