"""Export of a trained model to ONNX with dynamic height, width and batch, compared with onnxruntime's outputs."""

import contextlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvt_mm.utils.errors import InputError, import_errors
from pvt_mm.utils.files import atomic_write

SMALLEST, LARGEST = 64, 8192  # pixels per side, a range in which torch.export can prove that no map is empty
SIZES = ((1, 64, 96), (2, 224, 224), (3, 101, 230))  # batch, height and width of the images that are compared
TOLERANCE = 1e-4  # relative to the largest value


class Segmentor(nn.Module):
    """A segmentor that maps normalised images (B, C, H, W) to scores (B, classes, H, W), without data samples."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        head = self.model.decode_head
        scores = head(self.model.extract_feat(image))
        return F.interpolate(scores, image.shape[2:], mode='bilinear', align_corners=head.align_corners)


def choose_part(model: nn.Module, part: str | None) -> tuple[nn.Module, str]:
    """Returns the module to export and its name: ``part``, or if None ``model`` of a Semantic FPN, else ``backbone``.

    Raises:
        InputError: The model has no such part.
    """
    head = getattr(model, 'decode_head', None)
    part = part or ('model' if type(head).__name__ == 'FPNHead' else 'backbone')
    if part == 'backbone':
        if not hasattr(model, 'backbone'):
            raise InputError(f'a {type(model).__name__} has no backbone to export')
        return model.backbone, part
    if not isinstance(head, nn.Module):
        raise InputError(f'--part model: a {type(model).__name__} is not a segmentor: use --part backbone')
    return Segmentor(model), part


def export(model: nn.Module, path: str | os.PathLike, about: dict | None = None) -> dict:
    """Writes a module that maps images (B, C, H, W) to one or more maps as ONNX, if onnxruntime agrees with PyTorch.

    C is what the model takes, B is dynamic, and so are H and W from 64 to 8192. Images are normalised as in training.

    Args:
        model: The module, in eval mode and on the CPU.
        path: The file to write, atomically.
        about: Entries to add to the file's metadata; values that are not strings are written as JSON.

    Returns:
        ``outputs``, their names; ``difference``, the largest between onnxruntime and PyTorch over :data:`SIZES`,
        relative to the largest value of an output; and ``megabytes``.

    Raises:
        InputError: PyTorch is too old, a package is missing, the model cannot be exported, or the outputs differ.
    """
    if torch.__version__ < '2.6':
        raise InputError(f'exporting to ONNX needs torch 2.6 or later, and this is {torch.__version__}')
    with import_errors('exporting to ONNX', 'pvt_mm[onnx]'):
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    with torch.no_grad():
        outputs = _as_tuple(model(torch.zeros(1, channels_of(model), 128, 128)))
    names = ['scores'] if isinstance(model, Segmentor) else [f'feature{i}' for i in range(len(outputs))]
    try:
        program = _export(model, names)
    except Exception as error:  # torch.export raises anything
        why = next((line for line in str(error).splitlines()[::-1] if line.strip()), type(error).__name__)
        raise InputError(f'a {type(model).__name__} cannot be exported with dynamic sizes: {why}') from error
    for key, value in (about or {}).items():
        program.model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value)
    with atomic_write(path) as temporary:
        program.save(temporary, external_data=False)
        difference = _largest_difference(model, temporary)
        if not difference <= TOLERANCE:  # also if it is NaN
            raise InputError(f'onnxruntime differs from PyTorch by {difference:.1e}: {path} is not written')
    return dict(outputs=names, difference=difference, megabytes=round(Path(path).stat().st_size / 1e6, 1))


def channels_of(model: nn.Module) -> int:
    """Returns the number of channels of the images that a model takes: its backbone's, or its first convolution's."""
    inner = getattr(model, 'model', model)
    backbone = getattr(inner, 'backbone', inner)
    first = next((part for part in backbone.modules() if isinstance(part, nn.Conv2d)), None)
    return getattr(backbone, 'in_channels', getattr(first, 'in_channels', 3))


def _export(model: nn.Module, names: Sequence[str]) -> 'torch.onnx.ONNXProgram':
    height, width = (torch.export.Dim(name, min=SMALLEST, max=LARGEST) for name in ('height', 'width'))
    axes = {0: torch.export.Dim('batch', min=1), 2: height, 3: width}
    for name in ('torch.onnx', 'onnxscript', 'onnx_ir'):  # they log operators that are missing or not folded
        logging.getLogger(name).setLevel(logging.ERROR)
    with contextlib.ExitStack() as stack, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')
        if 'mmseg' in sys.modules:
            # It computes sizes with `int` and `math.ceil`, which torch.export turns into constants.
            from mmseg.models.utils import Upsample
            from mmseg.models.utils.embed import AdaptivePadding

            stack.enter_context(mock.patch.object(Upsample, 'forward', _upsample))
            stack.enter_context(mock.patch.object(AdaptivePadding, 'forward', _pad))
        return torch.onnx.export(
            model,
            (torch.randn(2, channels_of(model), 96, 160),),
            dynamo=True,
            dynamic_shapes=(axes,),
            input_names=['image'],
            output_names=list(names),
            verbose=False,
        )


def _upsample(self: nn.Module, x: Tensor) -> Tensor:
    size = self.size or [side * int(self.scale_factor) for side in x.shape[2:]]
    return F.interpolate(x, size, None, self.mode, self.align_corners)


def _pad(self: nn.Module, x: Tensor) -> Tensor:
    (H, W), (patch_h, patch_w) = x.shape[2:], self.stride
    return F.pad(x, (0, -W % patch_w, 0, -H % patch_h))


def _largest_difference(model: nn.Module, path: Path) -> float:
    """Returns the largest relative difference of onnxruntime from PyTorch on images of :data:`SIZES`, or NaN."""
    import onnxruntime

    generator, worst = torch.Generator().manual_seed(0), 0.0
    try:
        session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
        for batch, height, width in SIZES:
            image = torch.randn(batch, channels_of(model), height, width, generator=generator)
            with torch.no_grad():
                expected = [output.numpy() for output in _as_tuple(model(image))]
            found = session.run(None, {'image': image.numpy()})
            for mine, theirs in zip(expected, found, strict=True):
                if mine.shape != theirs.shape:
                    raise ValueError(f'an output is {theirs.shape} with onnxruntime and {mine.shape} with PyTorch')
                # unlike `max`, `np.maximum` keeps NaN
                worst = float(np.maximum(worst, np.abs(mine - theirs).max() / np.abs(mine).max()))
    except Exception as error:  # onnxruntime's exceptions have no common base class
        what = ' '.join(str(error).split())[:300]
        raise InputError(f'a {type(model).__name__} cannot be exported with dynamic sizes: {what}') from error
    return worst


def _as_tuple(outputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
