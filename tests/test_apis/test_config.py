"""Configs that are read and overridden, or refused."""

from unittest.mock import MagicMock

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner

from pvt_mm.apis import config as config_module
from pvt_mm.apis.config import check_file, innermost_dataset, leaf_datasets, load_config, settings_of
from pvt_mm.utils.errors import InputError
from tests.conftest import ROOT

RETINANET = str(ROOT / 'configs/retinanet/pvt_t_1x.py')
DEMO = str(ROOT / 'configs/demo/retinanet_shapes.py')


def test_options_override_settings_and_data_root_moves_all_data():
    options = {'data_root': '/elsewhere', 'model.backbone.drop_path_rate': 0.3, 'train_cfg.max_epochs': 2}
    config = load_config(RETINANET, options)
    for split in ('train', 'val', 'test'):
        assert config[f'{split}_dataloader'].dataset.data_root == '/elsewhere/'
    assert config.val_evaluator.ann_file == '/elsewhere/annotations/instances_val2017.json'
    assert config.test_evaluator.ann_file == '/elsewhere/annotations/instances_val2017.json'
    assert config.train_dataloader.dataset.ann_file == 'annotations/instances_train2017.json'
    assert config.model.backbone.drop_path_rate == 0.3
    assert config.train_cfg.max_epochs == 2


def test_options_below_none_make_a_dict():
    config = load_config(DEMO, {'model.backbone.init_cfg.type': 'Pretrained'})
    assert config.model.backbone.init_cfg == dict(type='Pretrained')


def test_options_may_be_all_settings_that_mmengines_runner_reads(monkeypatch):
    """Every name that building and starting a training asks its config for is one that an option may set."""
    asked = set()

    class Asked(dict):
        def get(self, name, default=None):
            asked.add(name)
            return super().get(name, default)

    config = dict(model=dict(type='Model'), work_dir='there')
    monkeypatch.setattr(Runner, '__init__', lambda self, **arguments: None)
    runner = Runner.from_cfg(Asked(config))
    runner.cfg, runner.model, runner.logger, runner._distributed = Asked(config), torch.nn.Linear(1, 1), MagicMock(), 1
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.setattr('mmengine.runner.runner.MMDistributedDataParallel', MagicMock())
    runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), runner.model)
    runner._maybe_compile('forward')
    assert {'sync_bn', 'find_unused_parameters', 'model_wrapper_cfg', 'compile'} <= asked <= settings_of(Runner)

    class MyRunner(Runner):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)

    assert settings_of(MyRunner) >= settings_of(Runner)


def test_options_that_the_config_does_not_set_yet():
    options = {
        'find_unused_parameters': True,
        'model_wrapper_cfg.type': 'MMSeparateDistributedDataParallel',
        'sync_bn': 'torch',
        'activation_checkpointing': ['backbone'],
        'efficient_conv_bn_eval': 'backbone',
        'compile.mode': 'max-autotune',
        'optim_wrapper.accumulative_counts': 2,
        'optim_wrapper.clip_grad.max_norm': 1.0,
        'train_dataloader.pin_memory': True,
    }
    config = load_config(RETINANET, options)
    assert config.compile == dict(mode='max-autotune')
    assert config.model_wrapper_cfg == dict(type='MMSeparateDistributedDataParallel')
    assert config.optim_wrapper.clip_grad == dict(max_norm=1.0)
    assert config.sync_bn == 'torch'
    flexible = {'runner_type': 'FlexibleRunner', 'strategy.type': 'FSDPStrategy'}
    assert load_config(RETINANET, flexible).strategy == dict(type='FSDPStrategy')


@pytest.mark.parametrize(
    ('path', 'options', 'message'),
    [
        (RETINANET.replace('pvt_t', 'pvt_z'), {}, r'does not exist; did you mean .*/retinanet/pvt_\w_1x.py\?'),
        (RETINANET.replace('retinanet', 'retinanat'), {}, r'does not exist; did you mean .*/retinanet/pvt_t_1x.py\?'),
        ('nowhere/at/all.py', {}, r'the config nowhere/at/all.py does not exist$'),
        (str(ROOT / 'LICENSE'), {}, 'LICENSE cannot be read'),
        (str(ROOT / 'configs'), {}, 'configs is a folder$'),
        (RETINANET, {'modle.backbone.arch': 'small'}, r'the config has no modle; did you mean model\?'),
        (RETINANET, {'sync_bm': 'torch'}, r'the config has no sync_bm; did you mean sync_bn\?'),
        (RETINANET, {'find_unused_parameter': True}, r'did you mean find_unused_parameters\?'),
        (RETINANET, {'strategy.type': 'DDPStrategy'}, 'strategy is for runner_type=FlexibleRunner only'),
        (RETINANET, {'compile': 'yes'}, "compile is 'yes', and must be True, False or a dict of .* mode"),
        (RETINANET, {'compile.mod': 'max-autotune'}, "compile is {'mod': 'max-autotune'}, and must be"),
        (RETINANET, {'quux': 1}, 'the config has no quux; it has'),
        (DEMO, {'metainfo.classes': ('a',)}, 'metainfo is a variable inside the config'),
        (RETINANET, {'model.backbone.arch.x': 1}, '--cfg-options do not fit'),
    ],
)
def test_paths_and_options_that_are_refused(path, options, message):
    with pytest.raises(InputError, match=message):
        load_config(path, options)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a = 1', 'has no model: is it the config of a model'),
        ('model = [1]', r'model is \[1\], and must be a dict'),
        ('model = dict()\ntest_dataloader = 3', 'test_dataloader is 3, and must be a dict'),
        ('model = dict()\ntest_dataloader = dict()', r'has no test_dataloader\.dataset'),
    ],
)
def test_configs_without_the_parts_that_tools_read(text, message, tmp_path):
    (tmp_path / 'config.py').write_text(text)
    with pytest.raises(InputError, match=message):
        load_config(str(tmp_path / 'config.py'))
    with pytest.raises(InputError, match='data_root is not set in the config'):
        load_config(str(tmp_path / 'config.py'), {'data_root': 'data'})


def test_a_missing_checkpoint_and_a_similar_one(tmp_path):
    (tmp_path / 'epoch_8.pth').touch()
    check_file('checkpoint', str(tmp_path / 'epoch_8.pth'))
    check_file('checkpoint', 'https://example.com/epoch_8.pth')
    with pytest.raises(InputError, match=r'epoch_80.pth does not exist; did you mean .*/epoch_8.pth\?'):
        check_file('checkpoint', str(tmp_path / 'epoch_80.pth'))
    with pytest.raises(InputError, match='is a folder'):
        check_file('checkpoint', str(tmp_path))


def test_data_sets_inside_of_wrappers():
    one, two = ConfigDict(type='A'), ConfigDict(type='B')
    joined = Config(dict(dataset=dict(datasets=[one, dict(dataset=two)])))
    assert list(leaf_datasets(joined)) == [one, two]
    assert list(leaf_datasets(one)) == [one]
    assert innermost_dataset(ConfigDict(dataset=dict(dataset=one))) == one


def test_imports_print_nothing_of_a_package_that_nobody_misses(capsys, monkeypatch):
    def load(name: str) -> None:
        print(f'Could not import OneDL. Skipping OneDL datasets.\n{name} is imported')

    monkeypatch.setattr(config_module.importlib, 'import_module', load)
    config_module.import_scope(Config(dict(default_scope='mmseg')))
    assert capsys.readouterr().out == 'mmseg.models is imported\nmmseg.datasets is imported\n'
