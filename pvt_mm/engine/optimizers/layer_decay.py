"""Layer-wise learning rate decay: fine-tuning changes deeper layers more."""

from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from pvt_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS
from pvt_mm.utils.errors import InputError


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimizerConstructor(DefaultOptimWrapperConstructor):
    """Multiplies the learning rate of each backbone layer by ``layer_decay_rate`` once for each layer above it.

    The backbone says which layer a parameter is in by ``get_layer_depth(param_name) -> (depth, num_layers)``, as
    MMPretrain's backbones do. Its multiplier is ``layer_decay_rate ** (num_layers - 1 - depth)``. Parameters of other
    modules are trained with the base learning rate.

    ``paramwise_cfg`` takes ``layer_decay_rate`` in addition to all that MMEngine's constructor takes, and the
    multipliers multiply. Weight decay is excluded there: by ``norm_decay_mult=0``, ``bias_decay_mult=0``, and
    ``custom_keys`` with ``'cls_token.token': dict(decay_mult=0)`` or ``'pos_embed': dict(decay_mult=0)``.

    Raises:
        InputError: ``layer_decay_rate`` is missing or not in (0, 1], or no module has ``get_layer_depth``.
    """

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = '', is_dcn_module: bool | None = None
    ) -> None:
        super().add_params(params, module, prefix, is_dcn_module)
        if prefix:  # MMEngine's method calls itself for the children
            return
        rate, multipliers = self.paramwise_cfg.get('layer_decay_rate'), {}
        if not isinstance(rate, (int, float)) or not 0 < rate <= 1:
            raise InputError(
                f'LayerDecayOptimizerConstructor: optim_wrapper.paramwise_cfg.layer_decay_rate is {rate}: it must be '
                'more than 0 and at most 1'
            )
        for backbone in module.modules():
            if hasattr(backbone, 'get_layer_depth'):
                for name, parameter in backbone.named_parameters():
                    depth, num_layers = backbone.get_layer_depth(name)
                    multipliers[parameter] = rate ** (num_layers - 1 - depth)
        if not multipliers:
            raise InputError(
                f'LayerDecayOptimizerConstructor: no module of {type(module).__name__} has get_layer_depth; use a '
                "backbone such as type='pvt_mm.PVT', or remove optim_wrapper.constructor"
            )
        for group in params:
            (parameter,) = group['params']
            group['lr'] = group.get('lr', self.base_lr) * multipliers.get(parameter, 1.0)
