"""Layer-wise learning rates for models with a PVT: the deeper a layer, the further its fine-tuning may take it."""

from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from pvt_mm.errors import InputError
from pvt_mm.models import PVT
from pvt_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimizerConstructor(DefaultOptimWrapperConstructor):
    """Multiplies the learning rate of each layer of PVT by ``layer_decay_rate`` once for each layer above it.

    The L encoder layers of all stages are numbered 1 to L, and what embeds the tokens of a stage has the number of the
    stage's first layer, but the first stage's has 0. A parameter of number n learns at ``layer_decay_rate ** (L + 1 -
    n)`` times the rate; whatever is behind the backbone, and the class token's norm, at the full rate.

    ``paramwise_cfg`` takes ``layer_decay_rate`` beside all that MMEngine's constructor takes, so which parameters are
    exempt from weight decay is chosen there: ``norm_decay_mult=0``, ``bias_decay_mult=0``, and ``custom_keys`` with
    ``'cls_token.token': dict(decay_mult=0)`` or ``'pos_embed': dict(decay_mult=0)``. The multipliers multiply.

    Raises:
        InputError: ``layer_decay_rate`` is missing or not in (0, 1], or the model has no PVT.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        rate = self.paramwise_cfg.get('layer_decay_rate')
        if not isinstance(rate, (int, float)) or not 0 < rate <= 1:
            raise InputError(
                f'LayerDecayOptimizerConstructor: optim_wrapper.paramwise_cfg.layer_decay_rate is {rate}: it must be '
                'more than 0 and at most 1'
            )

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = '', is_dcn_module: bool | None = None
    ) -> None:
        super().add_params(params, module, prefix, is_dcn_module)
        if prefix:  # MMEngine's walks down the model through this method
            return
        rate, scales = self.paramwise_cfg['layer_decay_rate'], {}
        for backbone in module.modules():
            if isinstance(backbone, PVT):
                depth = len([layer for stage in backbone.stages for layer in stage.layers])
                for key, parameter in backbone.named_parameters():
                    scales[parameter] = rate ** (depth + 1 - layer_number(backbone, key))
        if not scales:
            raise InputError(f'{type(self).__name__} is for models with a PVT, and {type(module).__name__} has none')
        for group in params:
            (parameter,) = group['params']
            group['lr'] = group.get('lr', self.base_lr) * scales.get(parameter, 1.0)


def layer_number(backbone: PVT, name: str) -> int:
    """Returns the number of the layer that a parameter of ``backbone`` belongs to, from 0 to L + 1."""
    depths = [len(stage.layers) for stage in backbone.stages]
    kind, *rest = name.split('.')
    if kind == 'cls_token':
        return sum(depths) + 1 if rest[0] == 'norm' else sum(depths[:-1]) + 1
    stage = int(rest[0])
    if rest[1] == 'layers':
        return sum(depths[:stage]) + int(rest[2]) + 1
    return sum(depths[:stage]) + 1 if stage else 0
