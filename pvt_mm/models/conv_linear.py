"""Linear layers as convolutions, for AMD's CPUs: the same values in float32, from the faster library.

PyTorch gives float32 matrix products on a CPU to MKL and convolutions to oneDNN, which is faster on AMD's processors:
docs/benchmarks.md has the figures, quiet and busy. Nothing uses this unless it is called::

    from pvt_mm.models.conv_linear import use_conv_linear
    use_conv_linear(model.backbone)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvt_mm.models.eager import is_eager_cpu, replace_layers

MIN_VALUES = 20481  # PyTorch gives smaller convolutions to another library


class ConvLinear(nn.Linear):
    """An ``nn.Linear`` whose product is a convolution of one pixel where its input is float32 on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_supported(x):
            return super().forward(x)
        rows = x.reshape(1, -1, 1, self.in_features).permute(0, 3, 1, 2)  # (1, C, n, 1), channels-last
        # NOTE: dilation changes nothing for a kernel of one pixel, but has PyTorch choose oneDNN for one thread, too.
        y = F.conv2d(rows, self.weight[..., None, None], self.bias, dilation=2)  # (1, C_out, n, 1)
        return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], self.out_features)

    def is_supported(self, x: Tensor) -> bool:
        """Returns whether the convolution is used for ``x``."""
        return is_eager_cpu(x) and x.dtype == torch.float32 and x.numel() >= MIN_VALUES


def use_conv_linear(model: nn.Module) -> None:
    """Makes every ``nn.Linear`` in a model a :class:`ConvLinear`, in place; subclasses of ``nn.Linear`` stay.

    Parameters and their names do not change. Compiled and exported models, other devices and other types keep
    PyTorch's own product.
    """
    replace_layers(model, {nn.Linear: ConvLinear})
