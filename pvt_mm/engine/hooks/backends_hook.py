"""PyTorch's choices of precision and kernels, as settings of a run."""

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from pvt_mm.registry import HOOKS


@HOOKS.register_module()
class BackendsHook(Hook):
    """Sets PyTorch's global switches while a run lasts. What is None stays as it is.

    Args:
        float32_matmul_precision: Of matrix products of float32: ``'highest'`` (PyTorch's default), ``'high'`` (TF32 on
            NVIDIA GPUs since Ampere, of 10 bits) or ``'medium'``; see ``torch.set_float32_matmul_precision``.
            Convolutions use TF32 there by default, whatever this says.
        cudnn_attention: Whether attention may use cuDNN's kernels, which build a plan for each new shape; see
            ``torch.backends.cuda.enable_cudnn_sdp``. PyTorch before 2.4 does not have them.

    Raises:
        ValueError: There is no such precision.
    """

    def __init__(self, float32_matmul_precision: str | None = None, cudnn_attention: bool | None = None):
        if float32_matmul_precision not in (None, 'highest', 'high', 'medium'):
            raise ValueError(
                f"float32_matmul_precision must be 'highest', 'high' or 'medium', got {float32_matmul_precision!r}"
            )
        self.float32_matmul_precision, self.cudnn_attention = float32_matmul_precision, cudnn_attention

    def before_run(self, runner: Runner) -> None:
        """Sets them."""
        # Reading the precision fails where it was set by PyTorch's newer torch.backends.cuda.matmul.fp32_precision.
        precision = None if self.float32_matmul_precision is None else torch.get_float32_matmul_precision()
        self.before = precision, cudnn_attention_enabled()
        self._set(self.float32_matmul_precision, self.cudnn_attention)

    def after_run(self, runner: Runner) -> None:
        """Restores them."""
        self._set(*self.before)

    @staticmethod
    def _set(precision: str | None, cudnn_attention: bool | None) -> None:
        if precision is not None:
            torch.set_float32_matmul_precision(precision)
        if cudnn_attention is not None and hasattr(torch.backends.cuda, 'enable_cudnn_sdp'):
            torch.backends.cuda.enable_cudnn_sdp(cudnn_attention)


def cudnn_attention_enabled() -> bool | None:
    """Returns whether PyTorch may choose cuDNN's attention, None where it has none."""
    enabled = getattr(torch.backends.cuda, 'cudnn_sdp_enabled', None)
    return enabled and enabled()
