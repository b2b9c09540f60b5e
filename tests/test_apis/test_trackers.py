"""``--vis``: MMEngine's backends of experiment trackers."""

import importlib.util

import pytest
from mmengine.config import Config
from mmengine.registry import VISBACKENDS

from pvt_mm.apis.flags import TRACKERS, use_trackers
from pvt_mm.utils.errors import InputError


def test_backends_are_added_to_those_of_the_config(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: object())
    local = dict(type='LocalVisBackend')
    config = Config(dict(visualizer=dict(type='DetLocalVisualizer', vis_backends=[local])))
    use_trackers(config, ['tensorboard', 'wandb', 'tensorboard'])
    assert config.visualizer.type == 'DetLocalVisualizer'
    assert config.visualizer.vis_backends == [local, dict(type=TRACKERS['tensorboard']), dict(type=TRACKERS['wandb'])]
    none = Config({})
    use_trackers(none, ['mlflow'])
    assert none.visualizer == dict(type='Visualizer', vis_backends=[local, dict(type='MLflowVisBackend')])


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(InputError, match='--vis wandb: wandb is not installed: pip install wandb'):
        use_trackers(Config({}), ['wandb'])


def test_mmengine_has_the_backends():
    assert all(backend in VISBACKENDS for backend in TRACKERS.values())
