"""What each flag of tools/train.py and tools/test.py changes in the config."""

import copy
import logging
import os
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from pvt_mm.apis import flags, training, weight_checks
from pvt_mm.apis.config import load_config
from pvt_mm.apis.flags import (
    draw_predictions,
    dump_predictions,
    report_batch_size,
    resume,
    scale_lr,
    use_amp,
    use_compile,
    use_tta,
    warn_of_other_run,
)
from pvt_mm.utils.errors import InputError
from tests.conftest import ROOT
from tools import test as test_tool
from tools import train as train_tool

DEMO = str(ROOT / 'configs/demo/retinanet_shapes.py')


@pytest.fixture(scope='module')
def demo() -> Config:
    return load_config(DEMO)


@pytest.fixture
def config(demo) -> Config:
    return copy.deepcopy(demo)


@pytest.fixture
def built(shapes, tmp_path, monkeypatch):
    """Returns the config that a tool builds its runner from."""

    def run_until_built(tool, *arguments: str) -> Config:
        given = []

        def stop(config):
            given.append(config)
            raise InputError('far enough')

        monkeypatch.setattr(training if tool is train_tool else tool, 'build_runner', stop)
        monkeypatch.setattr(weight_checks, 'check_tested_checkpoint', lambda *_: None)  # the file is empty
        monkeypatch.chdir(tmp_path)
        assert tool.main([*arguments, '--cfg-options', f'data_root={shapes}']) == 2
        return given[0]

    return run_until_built


def test_flags_of_training_reach_the_runner(built, monkeypatch):
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', '')
    del os.environ['CUBLAS_WORKSPACE_CONFIG']
    plain = built(train_tool, DEMO)
    assert 'CUBLAS_WORKSPACE_CONFIG' not in os.environ
    assert plain.randomness == dict(seed=0)
    assert plain.optim_wrapper.type == 'OptimWrapper'
    assert not plain.auto_scale_lr.get('enable')
    assert plain.val_cfg
    assert plain.work_dir == 'work_dirs/retinanet_shapes'
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)  # after MMDetection's import, which looks
    flags = ['--auto-scale-lr', '--compile', '--no-validate', '--seed', '5', '--deterministic', '--work-dir', 'there']
    config = built(train_tool, '--amp', DEMO, *flags)
    assert config.optim_wrapper.type == 'AmpOptimWrapper'
    assert config.optim_wrapper.dtype == 'float16'
    assert config.optim_wrapper.loss_scale == 'dynamic'
    assert config.auto_scale_lr == dict(enable=True, base_batch_size=4)
    assert config.custom_hooks == [dict(type='pvt_mm.CompileHook')]  # float16 needs no other
    assert config.val_cfg is config.val_dataloader is config.val_evaluator is None
    assert config.randomness == dict(seed=5, deterministic=True)
    assert os.environ['CUBLAS_WORKSPACE_CONFIG'] == ':4096:8'
    assert config.work_dir == 'there'
    assert built(train_tool, DEMO, '--deterministic').randomness == dict(seed=0, deterministic=True)
    config = built(train_tool, '--amp', 'bf16', DEMO)
    assert config.optim_wrapper.dtype == 'bfloat16'
    assert config.optim_wrapper.loss_scale == dict(enabled=False)
    assert config.custom_hooks == [dict(type='pvt_mm.Float32OpsHook')]


def test_flags_of_testing_reach_the_runner(built, tmp_path):
    (tmp_path / 'any.pth').touch()
    flags = ['--tta', '--compile', '--show-dir', 'drawn', '--out', 'out.pkl', '--wait-time', '3']
    config = built(test_tool, DEMO, str(tmp_path / 'any.pth'), *flags)
    assert config.load_from == str(tmp_path / 'any.pth')
    assert config.model.type == 'DetTTAModel'
    assert config.model.module.type == 'RetinaNet'
    assert config.custom_hooks == [dict(type='pvt_mm.CompileHook')]
    assert config.test_dataloader.dataset.pipeline[1].type == 'TestTimeAug'
    hook = config.default_hooks.visualization
    assert (hook.draw, hook.show, hook.wait_time, hook.test_out_dir) == (True, False, 3, 'drawn')
    assert [metric.type for metric in config.test_evaluator] == ['CocoMetric', 'DumpDetResults']


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_amp_without_a_gpu(config):
    with pytest.raises(InputError, match='--amp bf16 needs a GPU'):
        use_amp(config, 'bf16')


def test_flags_that_the_config_has_no_settings_for():
    with pytest.raises(InputError, match=r'--auto-scale-lr: auto_scale_lr.base_batch_size is not set'):
        scale_lr(Config({}))
    with pytest.raises(InputError, match=r'--compile: compile is set in the config'):
        use_compile(Config(dict(compile=True)))
    with pytest.raises(InputError, match='--tta: tta_model is not set in the config'):
        use_tta(Config({}))
    with pytest.raises(InputError, match=r'--show-dir: default_hooks.visualization is not set in the config'):
        draw_predictions(Config({}), False, 'drawn', 2)


@pytest.mark.parametrize(
    ('processes', 'options', 'message'),
    [
        (8, {}, 'INFO batch size 16 (8 processes x 2 images), and the learning rate is for 16'),
        (
            1,
            {},
            'WARNING batch size 2 (1 process x 2 images), and the learning rate is for 16: --auto-scale-lr multiplies '
            'it by 0.125; with Adam, 0.354 (the square root) is as common',
        ),
        (
            1,
            dict(auto_scale_lr=dict(base_batch_size=16, enable=True)),
            'INFO batch size 2 (1 process x 2 images), and the learning rate is for 16: it is multiplied by 0.125',
        ),
        (
            4,
            dict(optim_wrapper=dict(accumulative_counts=2)),
            'INFO batch size 16 (4 processes x 2 images x 2 accumulated steps), and the learning rate is for 16',
        ),
        (
            4,
            dict(
                optim_wrapper=dict(accumulative_counts=2),
                auto_scale_lr=dict(base_batch_size=16, enable=True),
            ),
            'INFO batch size 16 (4 processes x 2 images x 2 accumulated steps), and the learning rate is for 16: it is '
            'multiplied by 0.5, without the accumulated steps',
        ),
        (
            1,
            dict(resume=True),
            'INFO batch size 2 (1 process x 2 images), and the learning rate is for 16 (it stays that of the '
            'checkpoint)',
        ),
        (
            1,
            dict(auto_scale_lr=None, train_dataloader=dict(batch_size=1)),
            'INFO batch size 1 (1 process x 1 image); which one the learning rate is for is not set '
            '(auto_scale_lr.base_batch_size)',
        ),
        (1, dict(train_dataloader=dict(batch_sampler=dict(type='BatchSampler'))), ''),
    ],
)
def test_the_batch_size_and_that_of_the_recipe_are_reported(processes, options, message, caplog):
    config = Config(
        dict(
            train_dataloader=dict(batch_size=2),
            optim_wrapper=dict(type='OptimWrapper'),
            auto_scale_lr=dict(base_batch_size=16),
        )
        | options
    )
    with caplog.at_level(logging.INFO):
        report_batch_size(config, processes, logging.getLogger('batch'))
    assert ' '.join(f'{record.levelname} {record.message}' for record in caplog.records) == message


def test_predictions_of_segmentors_are_drawn_and_dumped_into_folders(config):
    with pytest.raises(InputError, match=r'--out folder: name a .pkl file'):
        dump_predictions(config, 'folder')
    segmentor = Config(
        dict(
            test_evaluator=dict(type='IoUMetric'),
            default_scope='mmseg',
            visualizer={},
            default_hooks=dict(visualization=dict(type='SegVisualizationHook')),
        )
    )
    draw_predictions(segmentor, True, 'drawn', 2)
    assert segmentor.visualizer.save_dir == 'drawn'
    assert segmentor.default_hooks.visualization.show
    dump_predictions(segmentor, 'folder')
    assert segmentor.test_evaluator.output_dir == 'folder'
    dump_predictions(segmentor, 'out.pkl')
    assert [metric.type for metric in segmentor.test_evaluator] == ['IoUMetric', 'DumpResults']


def test_resume_without_a_checkpoint(tmp_path):
    config = Config(dict(work_dir=str(tmp_path)))
    assert resume(config, 'auto') is None
    assert config.resume is False
    assert config.load_from is None
    with pytest.raises(InputError, match=r'the checkpoint .*/gone.pth does not exist'):
        resume(config, str(tmp_path / 'gone.pth'))
    (tmp_path / 'last_checkpoint').write_text('gone.pth')
    with pytest.raises(InputError, match=rf'--resume: all checkpoints in {tmp_path} are damaged: gone.pth does not'):
        resume(config, 'auto')


def test_resume_finds_the_newest_intact_checkpoint(tmp_path):
    config = Config(dict(work_dir=str(tmp_path)))
    for seconds, name in enumerate(('epoch_1', 'epoch_2', 'epoch_3', 'best')):
        torch.save(dict(meta={}, message_hub={}, optimizer={}), tmp_path / f'{name}.pth')
        os.utime(tmp_path / f'{name}.pth', (seconds, seconds))
    (tmp_path / 'last_checkpoint').write_text('/moved/since/best.pth')
    for damaged, expected in ((None, 'best'), ('best', 'epoch_3'), ('epoch_3', 'epoch_2'), ('epoch_2', 'epoch_1')):
        if damaged:
            os.truncate(tmp_path / f'{damaged}.pth', 50)
            os.utime(tmp_path / f'{damaged}.pth', (9, 9))
        assert Path(resume(config, 'auto')) == tmp_path / f'{expected}.pth'
        assert config.resume is True
        assert config.load_from == str(tmp_path / f'{expected}.pth')
    torch.save({'state_dict': {}}, tmp_path / 'epoch_1.pth')
    with pytest.raises(InputError, match=r'damaged: .*/best.pth .*epoch_1.pth has no meta, message_hub, optimizer'):
        resume(config, 'auto')


def test_checkpoints_of_another_run_are_warned_of_in_the_log(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(flags, 'print_log', lambda text, logger, level: told.append((text, logger, level)))
    warn_of_other_run(str(tmp_path))
    assert not told
    (tmp_path / 'last_checkpoint').write_text('epoch_1.pth')
    warn_of_other_run(str(tmp_path))
    assert 'has checkpoints of another run, which this one overwrites: use --resume' in told[0][0]
    assert told[0][1:] == ('current', logging.WARNING)
