"""Every parameter's learning rate and weight decay under layer-wise decay."""

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope

from tests.conftest import ROOT, TINY_ARCH

# PVT-Tiny has two layers a stage: what a parameter is in, and the power of the rate that it has.
POWERS = {
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
TASKS = ('retinanet/pvt_t_1x', 'semantic_fpn/pvt_t_80k', 'classification/pvt_t_300e')


def optimiser_of(name: str, **paramwise):
    """Returns the model of a config and, by parameter, the learning rate and weight decay that it trains with."""
    config = Config.fromfile(ROOT / f'configs/{name}.py')
    config.optim_wrapper.constructor = 'pvt_mm.LayerDecayOptimizerConstructor'
    config.optim_wrapper.paramwise_cfg = {**config.optim_wrapper.get('paramwise_cfg', {}), **paramwise}
    with DefaultScope.overwrite_default_scope(config.default_scope), torch.device('meta'):
        model = MODELS.build(config.model)
        groups = build_optim_wrapper(model, config.optim_wrapper).optimizer.param_groups
    settings = {id(group['params'][0]): (group['lr'], group['weight_decay']) for group in groups}
    return {key: settings[id(value)] for key, value in model.named_parameters()}, config.optim_wrapper.optimizer


@pytest.mark.parametrize('name', TASKS)
def test_every_parameter_of_pvt_tiny(name):
    settings, base = optimiser_of(name, layer_decay_rate=0.5)
    seen = set()
    for key, (lr, decay) in settings.items():
        prefix = next((prefix for prefix in POWERS if key.startswith(f'{prefix}.') or key == prefix), None)
        assert (prefix is None) == (not key.startswith('backbone.')), key
        assert lr == pytest.approx(base.lr * 0.5 ** POWERS.get(prefix, 0)), key
        exempt = name.startswith('classification') and key == 'backbone.cls_token.token'
        assert decay == (0 if exempt else base.weight_decay), key
        seen.add(prefix)
    assert seen - {None} == {key for key in POWERS if 'cls_token' not in key or name.startswith('classification')}


def test_what_is_exempt_from_the_decay_is_a_choice():
    exempt = dict(norm_decay_mult=0.0, bias_decay_mult=0.0, custom_keys={'pos_embed': dict(decay_mult=0.0)})
    settings, base = optimiser_of('retinanet/pvt_t_1x', layer_decay_rate=0.5, **exempt)
    for key, (_, decay) in settings.items():
        assert decay == (0 if 'norm' in key or key.endswith('bias') or 'pos_embed' in key else base.weight_decay), key
    assert settings['backbone.stages.3.pos_embed.table'][0] == pytest.approx(base.lr / 4)


def test_multipliers_multiply():
    settings, base = optimiser_of(
        'retinanet/pvt_t_1x', layer_decay_rate=0.5, custom_keys={'backbone': dict(lr_mult=0.1)}
    )
    assert settings['backbone.stages.3.layers.1.attn.q.weight'][0] == pytest.approx(base.lr * 0.1 * 0.5)
    assert settings['neck.fpn_convs.0.conv.weight'][0] == base.lr


@pytest.mark.parametrize('rate', [None, 0, 1.5])
def test_a_rate_that_is_none_says_so(rate):
    with pytest.raises(ValueError, match=f'layer_decay_rate is {rate}: it must be more than 0 and at most 1'):
        optimiser_of('retinanet/pvt_t_1x', layer_decay_rate=rate)


def test_a_model_without_pvt_says_so():
    with pytest.raises(ValueError, match='RetinaNet has none'):
        optimiser_of('retinanet/r18_1x', layer_decay_rate=0.9)


def test_frozen_stages_are_left_out():
    config = Config.fromfile(ROOT / 'configs/retinanet/pvt_t_1x.py')
    config.optim_wrapper.update(
        constructor='pvt_mm.LayerDecayOptimizerConstructor', paramwise_cfg=dict(layer_decay_rate=0.9)
    )
    with DefaultScope.overwrite_default_scope('mmdet'), torch.device('meta'):
        model = MODELS.build({**config.model.backbone, 'arch': TINY_ARCH, 'frozen_stages': 2})
        groups = build_optim_wrapper(model, config.optim_wrapper).optimizer.param_groups
    assert len(groups) == sum(parameter.requires_grad for parameter in model.parameters())
