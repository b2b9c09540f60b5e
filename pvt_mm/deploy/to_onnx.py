"""A module as ONNX with dynamic height, width and batch, by standard operators alone."""

import contextlib
import copy
import json
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any
from unittest import mock

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvt_mm.deploy import operators
from pvt_mm.deploy.map_ffn import replace_ffns
from pvt_mm.utils.errors import InputError

SIDE = dict(min=64, max=8192)  # pixels, a range in which torch.export can prove that no map is empty
OPSET = 20  # the first with GELU


class Features(nn.Module):
    """A backbone from normalised images (B, C, H, W) to its maps."""

    task = 'features'

    def __init__(self, model: nn.Module):
        super().__init__()
        self.backbone = model.backbone
        self.outputs = tuple(f'feature{i}' for i in range(len(self.backbone.out_indices)))

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.backbone(image)


def to_onnx(graph: nn.Module, channels: int, map_ffns: bool = True) -> onnx.ModelProto:
    """Returns an exportable module of :mod:`pvt_mm.deploy.graphs` as ONNX.

    ``image`` is float32 (B, ``channels``, H, W) with B from 1 and H and W from 64 to 8192. With ``map_ffns``, PVTv2's
    feed-forward layers are convolutions: :mod:`pvt_mm.deploy.map_ffn`.

    Raises:
        InputError: PyTorch cannot export the module with dynamic sizes.
    """
    inputs, shapes = example(graph.task, channels)
    if map_ffns:
        graph = copy.deepcopy(graph)
        replace_ffns(graph)
    for name in ('torch.onnx', 'onnxscript', 'onnx_ir'):  # they log operators that are missing or not folded
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with replaced_sizes(), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter('ignore')
            program = torch.onnx.export(
                graph,
                tuple(inputs.values()),
                dynamo=True,
                dynamic_shapes=tuple(shapes.values()),
                input_names=list(inputs),
                output_names=list(graph.outputs),
                custom_translation_table=operators.translations(),
                opset_version=OPSET,
                verbose=False,
            )
    except InputError:
        raise
    except Exception as error:  # torch.export raises anything
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        why = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        raise InputError(f'the model cannot be exported with dynamic sizes: {why}') from error
    model = program.model_proto
    name_sizes(model)
    return model


def example(task: str, channels: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns inputs of a task's module by name, and which of their sizes are dynamic."""
    batch, height, width = (
        _dim(name, **limits) for name, limits in (('batch', dict(min=1)), ('height', SIDE), ('width', SIDE))
    )
    inputs = {'image': torch.randn(2, channels, 160, 288)}
    shapes: dict[str, Any] = {'image': {0: batch, 2: height, 3: width}}
    if task in ('detection', 'instance_segmentation'):
        inputs |= dict(img_shape=torch.tensor([[160, 288], [150, 270]]), ori_shape=torch.tensor([[48, 80], [60, 100]]))
        shapes |= dict(img_shape={0: batch}, ori_shape={0: batch})
    elif task == 'semantic_segmentation':
        inputs |= dict(img_shape=torch.tensor([150, 270]), ori_shape=torch.tensor([60, 100]))
        shapes |= dict(img_shape=None, ori_shape=None)
    return inputs, shapes


def _dim(name: str, **limits: int) -> Any:
    """Returns a dynamic size whose range torch.export may narrow; in the first versions it cannot, and has a name."""
    free = torch.export.Dim.DYNAMIC
    return free(**limits) if callable(free) else torch.export.Dim(name, **limits)


def name_sizes(model: onnx.ModelProto) -> None:
    """Names the dynamic sizes of the inputs ``batch``, ``height`` and ``width``, and those of the outputs likewise.

    torch.export names them itself where it is free to choose their range, and would otherwise export a model twice.
    """
    names = {}
    for dim, name in zip(
        model.graph.input[0].type.tensor_type.shape.dim, ('batch', '', 'height', 'width'), strict=True
    ):
        names[dim.dim_param] = name
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            dim.dim_param = names.get(dim.dim_param, dim.dim_param)


def set_metadata(model: onnx.ModelProto, about: Mapping[str, Any]) -> None:
    """Adds entries to the metadata of a file; values that are not strings are written as JSON."""
    del model.metadata_props[:]
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
    onnx.helper.set_model_props(model, texts)


@contextlib.contextmanager
def replaced_sizes():
    """Replaces what computes sizes with ``int`` and ``math.ceil``, which torch.export turns into constants."""
    with contextlib.ExitStack() as stack:
        if 'mmseg' in sys.modules:
            from mmseg.models.utils import Upsample
            from mmseg.models.utils.embed import AdaptivePadding

            stack.enter_context(mock.patch.object(Upsample, 'forward', _upsample))
            stack.enter_context(mock.patch.object(AdaptivePadding, 'forward', _pad))
        yield


def _upsample(self: nn.Module, x: Tensor) -> Tensor:
    size: Sequence[int] = self.size or [side * int(self.scale_factor) for side in x.shape[2:]]
    return F.interpolate(x, size, None, self.mode, self.align_corners)


def _pad(self: nn.Module, x: Tensor) -> Tensor:
    (H, W), (patch_h, patch_w) = x.shape[2:], self.stride
    return F.pad(x, (0, -W % patch_w, 0, -H % patch_h))
