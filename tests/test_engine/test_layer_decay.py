"""Every parameter's learning rate and weight decay under layer-wise decay."""

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from pvt_mm.models.backbone import PVT, PVTv2
from tests.conftest import ROOT, TINY_ARCH

# PVT-Tiny and PVTv2-B0 have two layers per stage. The key starts a parameter's name, the value is the exponent of the
# rate.
EXPONENTS = {
    'backbone.stages.0.patch_embed': 9,
    'backbone.stages.0.pos_embed': 9,
    'backbone.stages.0.layers.0': 8,
    'backbone.stages.0.layers.1': 7,
    'backbone.stages.1.patch_embed': 6,
    'backbone.stages.1.pos_embed': 6,
    'backbone.stages.1.layers.0': 6,
    'backbone.stages.1.layers.1': 5,
    'backbone.stages.2.patch_embed': 4,
    'backbone.stages.2.pos_embed': 4,
    'backbone.stages.2.layers.0': 4,
    'backbone.stages.2.layers.1': 3,
    'backbone.stages.3.patch_embed': 2,
    'backbone.stages.3.pos_embed': 2,
    'backbone.stages.3.layers.0': 2,
    'backbone.stages.3.layers.1': 1,
    'backbone.cls_token.token': 2,
    'backbone.cls_token.pos_embed': 2,
    'backbone.cls_token.norm': 0,
}
EXPONENTS_V2 = {
    **{key: exponent for key, exponent in EXPONENTS.items() if '.patch_embed' in key or '.layers.' in key},
    'backbone.stages.0.norm': 6,
    'backbone.stages.1.norm': 4,
    'backbone.stages.2.norm': 2,
    'backbone.stages.3.norm': 0,
}
ADAMW = dict(type='AdamW', lr=0.01, weight_decay=0.1)


def settings_of(model: nn.Module, optimizer: dict = ADAMW, **paramwise) -> dict[str, tuple[float, float]]:
    """Returns the learning rate and weight decay of every parameter."""
    constructor = 'pvt_mm.LayerDecayOptimizerConstructor'
    cfg = dict(type='OptimWrapper', constructor=constructor, optimizer=optimizer, paramwise_cfg=paramwise)
    groups = build_optim_wrapper(model, cfg).optimizer.param_groups
    settings = {id(group['params'][0]): (group['lr'], group['weight_decay']) for group in groups}
    return {key: settings[id(value)] for key, value in model.named_parameters() if value.requires_grad}


def build(name: str, **backbone) -> tuple[nn.Module, dict]:
    config = Config.fromfile(ROOT / f'configs/{name}.py')
    config.model.backbone.update(backbone)
    with DefaultScope.overwrite_default_scope(config.default_scope), torch.device('meta'):
        return MODELS.build(config.model), config.optim_wrapper


@pytest.mark.parametrize('name', ['retinanet/pvt_t_1x', 'classification/pvt_t_300e'])
def test_every_parameter_of_pvt_tiny(name):
    model, wrapper = build(name)
    base = wrapper.optimizer
    seen = set()
    for key, (lr, decay) in settings_of(model, base, **wrapper.get('paramwise_cfg', {}), layer_decay_rate=0.5).items():
        prefix = next((prefix for prefix in EXPONENTS if key.startswith(f'{prefix}.') or key == prefix), None)
        assert (prefix is None) == (not key.startswith('backbone.')), key
        assert lr == pytest.approx(base.lr * 0.5 ** EXPONENTS.get(prefix, 0)), key
        exempt = name.startswith('classification') and key == 'backbone.cls_token.token'
        assert decay == (0 if exempt else base.weight_decay), key
        seen.add(prefix)
    assert seen - {None} == {key for key in EXPONENTS if 'cls_token' not in key or name.startswith('classification')}


def test_every_parameter_of_pvt_v2_b0():
    model = nn.ModuleDict(dict(backbone=PVTv2('b0')))
    seen = set()
    for key, (lr, decay) in settings_of(model, layer_decay_rate=0.5).items():
        (prefix,) = (prefix for prefix in EXPONENTS_V2 if key.startswith(f'{prefix}.'))
        assert lr == pytest.approx(0.01 * 0.5 ** EXPONENTS_V2[prefix]), key
        assert decay == 0.1, key
        seen.add(prefix)
    assert seen == set(EXPONENTS_V2)


def test_multipliers_multiply_and_frozen_stages_are_left_out():
    model, _ = build('retinanet/pvt_t_1x', arch=TINY_ARCH, frozen_stages=1)
    custom = {'pos_embed': dict(decay_mult=0.0), 'attn.q.weight': dict(lr_mult=0.1)}
    settings = settings_of(model, layer_decay_rate=0.5, norm_decay_mult=0.0, bias_decay_mult=0.0, custom_keys=custom)
    assert {key.split('.')[2] for key in settings if key.startswith('backbone.')} == {'1', '2', '3'}
    for key, (_, decay) in settings.items():
        assert decay == (0 if 'norm' in key or key.endswith('bias') or 'pos_embed' in key else 0.1), key
    rates = {key: lr for key, (lr, _) in settings.items()}
    assert rates['backbone.stages.3.layers.0.attn.q.weight'] == pytest.approx(0.01 * 0.1 * 0.5)
    assert rates['backbone.stages.3.pos_embed.table'] == pytest.approx(0.01 * 0.5)
    assert rates['neck.fpn_convs.0.conv.weight'] == 0.01


def test_stages_that_are_not_built_do_not_count():
    backbone = PVT(TINY_ARCH, out_indices=(0, 1))  # of 1 and 2 layers
    assert backbone.get_layer_depth('stages.1.layers.1.attn.q.weight') == (3, 3 + 2)
    settings = settings_of(nn.ModuleDict(dict(backbone=backbone)), layer_decay_rate=0.5)
    assert settings['backbone.stages.1.layers.1.attn.q.weight'][0] == pytest.approx(0.01 * 0.5)
    assert settings['backbone.stages.0.pos_embed.table'][0] == pytest.approx(0.01 * 0.5**4)


class Other(nn.Module):
    """A backbone of another project."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(1, 1), nn.Linear(1, 1)

    def get_layer_depth(self, param_name, prefix=''):
        return (0 if param_name.startswith('stem') else 3), 4


def test_other_backbones_say_their_layers_themselves():
    settings = settings_of(nn.ModuleDict(dict(backbone=Other(), neck=nn.Linear(1, 1))), layer_decay_rate=0.5)
    rates = {key: lr for key, (lr, _) in settings.items() if 'weight' in key}
    assert rates == {'backbone.stem.weight': 0.01 / 8, 'backbone.head.weight': 0.01, 'neck.weight': 0.01}
    with pytest.raises(ValueError, match='no module of Linear has get_layer_depth'):
        settings_of(nn.Linear(1, 1), layer_decay_rate=0.9)


@pytest.mark.parametrize('rate', [None, 0, 1.5])
def test_an_invalid_rate_raises(rate):
    with pytest.raises(ValueError, match=f'layer_decay_rate is {rate}: it must be more than 0 and at most 1'):
        settings_of(Other(), layer_decay_rate=rate)
