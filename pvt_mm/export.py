"""A trained model as ONNX, with any height, width and batch, and only where onnxruntime computes what PyTorch does."""

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvt_mm.errors import InputError
from pvt_mm.files import whole_file

SMALLEST, LARGEST = 64, 8192  # pixels a side, of which torch.export knows that every map has a pixel
SIZES = ((1, 64, 96), (2, 224, 224), (3, 101, 230))  # batch, height and width of what is compared
TOLERANCE = 1e-4  # of the largest value


class Segmentor(nn.Module):
    """A segmentor from normalised images (B, 3, H, W) to scores (B, classes, H, W), without samples and resizing."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        head = self.model.decode_head
        scores = head(self.model.extract_feat(image))
        return F.interpolate(scores, image.shape[2:], mode='bilinear', align_corners=head.align_corners)


def choose_part(model: nn.Module, part: str | None) -> tuple[nn.Module, str]:
    """Returns what of a model is exported, and its name: ``model`` for Semantic FPN unless ``part`` says otherwise.

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
        raise InputError(f'--part model: a {type(model).__name__} is exported by its backbone, a segmentor alone whole')
    return Segmentor(model), part


def export(model: nn.Module, path: str | os.PathLike, about: dict | None = None) -> dict:
    """Writes a module from images (B, 3, H, W) to a map or several as ONNX, whole or, where it differs, not at all.

    B is any, H and W are at least 64. Images are normalised as in training.

    Args:
        model: In eval mode, on the CPU.
        path: The file, replaced where it is there.
        about: Further entries of the file's metadata; values that are no strings become JSON.

    Returns:
        ``outputs``, their names; ``difference``, the largest between onnxruntime and PyTorch over :data:`SIZES` and
        outputs, as a share of the output's largest value; ``megabytes``.

    Raises:
        InputError: ONNX's packages are absent, the model cannot be exported, or its results differ.
    """
    missing = [name for name in ('onnx', 'onnxscript', 'onnxruntime') if not find_spec(name)]
    if missing:
        raise InputError(f"{', '.join(missing)} not installed: pip install 'pvt_mm[onnx]'")
    with torch.no_grad():
        outputs = _as_tuple(model(torch.zeros(1, 3, 128, 128)))
    names = ['scores'] if isinstance(model, Segmentor) else [f'feature{i}' for i in range(len(outputs))]
    try:
        program = _export(model, names)
    except Exception as error:  # torch.export raises anything
        why = next((line for line in str(error).splitlines()[::-1] if line.strip()), type(error).__name__)
        raise InputError(f'a {type(model).__name__} cannot be exported with dynamic sizes: {why}') from error
    for key, value in (about or {}).items():
        program.model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value)
    try:
        with whole_file(path) as beside:
            program.save(beside, external_data=False)
            difference = compare(model, beside)
            if not difference <= TOLERANCE:
                raise InputError(f'onnxruntime differs from PyTorch by {difference:.1e}: {path} is not written')
    except OSError as error:
        raise InputError(f'{path} cannot be written: {error.strerror or error}') from None
    return dict(outputs=names, difference=difference, megabytes=round(Path(path).stat().st_size / 1e6, 1))


def _export(model: nn.Module, names: Sequence[str]) -> torch.onnx.ONNXProgram:
    side = dict(min=SMALLEST, max=LARGEST)
    axes = {0: torch.export.Dim('batch', min=1), 2: torch.export.Dim('height', **side)}
    axes[3] = torch.export.Dim('width', **side)
    for name in ('torch.onnx', 'onnxscript', 'onnx_ir'):  # they name each operator that is not there or not folded
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad(), _symbolic_sizes():
        warnings.simplefilter('ignore')
        return torch.onnx.export(
            model,
            (torch.randn(2, 3, 96, 160),),
            dynamo=True,
            dynamic_shapes=(axes,),
            input_names=['image'],
            output_names=list(names),
            verbose=False,
        )


@contextlib.contextmanager
def _symbolic_sizes() -> Iterator[None]:
    """Has MMSegmentation, where it is here, compute sizes without `int` and `math.ceil`: constants to torch.export."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError):
            from mmseg.models.utils import Upsample
            from mmseg.models.utils.embed import AdaptivePadding

            stack.enter_context(mock.patch.object(Upsample, 'forward', _upsample))
            stack.enter_context(mock.patch.object(AdaptivePadding, 'forward', _pad))
        yield


def _upsample(self: nn.Module, x: Tensor) -> Tensor:
    size = self.size or [side * int(self.scale_factor) for side in x.shape[2:]]
    return F.interpolate(x, size, None, self.mode, self.align_corners)


def _pad(self: nn.Module, x: Tensor) -> Tensor:
    (H, W), (patch_h, patch_w) = x.shape[2:], self.stride
    return F.pad(x, (0, -W % patch_w, 0, -H % patch_h))


def compare(model: nn.Module, path: str | os.PathLike) -> float:
    """Returns the largest difference between onnxruntime and PyTorch, as a share of an output's largest value.

    Random images of :data:`SIZES` are compared.

    Raises:
        InputError: onnxruntime cannot run the file, or has outputs of other shapes.
    """
    import onnxruntime

    generator, worst = torch.Generator().manual_seed(0), 0.0
    try:
        session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
        for batch, height, width in SIZES:
            image = torch.randn(batch, 3, height, width, generator=generator)
            with torch.no_grad():
                expected = [output.numpy() for output in _as_tuple(model(image))]
            found = session.run(None, {'image': image.numpy()})
            for mine, theirs in zip(expected, found, strict=True):
                if mine.shape != theirs.shape:
                    raise ValueError(f'an output is {theirs.shape}, and with PyTorch {mine.shape}')
                # `max` would pass over what is not a number
                worst = float(np.maximum(worst, np.abs(mine - theirs).max() / np.abs(mine).max()))
    except Exception as error:  # onnxruntime's exceptions have no parent of their own
        what = ' '.join(str(error).split())[:300]
        raise InputError(f'a {type(model).__name__} cannot be exported with dynamic sizes: {what}') from error
    return worst


def _as_tuple(outputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
