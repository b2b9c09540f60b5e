"""Smaller ONNX files: weights of 16 bits, or 8-bit integers, in standard operators alone.

:func:`store_half` changes how weights are stored, and the model is computed in float32 as before.
:func:`quantise_dynamic` and :func:`quantise_static` also compute in 8 bits. They quantise layers with at least
:data:`MIN_VALUES` weights, except the last ones, from which the outputs follow without another such layer. Products of
two activations (attention) stay in float32, and so does what has no such weights: preprocessing, the decoding and
suppression of boxes, and the resizing of maps.
"""

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from typing import Literal

import ml_dtypes
import numpy as np
import onnx
import onnx_ir
import onnxruntime
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from pvt_mm.utils.errors import InputError
from pvt_mm.utils.files import atomic_write

MIN_VALUES = 1000  # smaller weights stay in float32, such as constants of the decoding of boxes
HALF = {'fp16': np.dtype(np.float16), 'bf16': np.dtype(ml_dtypes.bfloat16)}


def store_half(model: ModelProto, dtype: Literal['fp16', 'bf16']) -> ModelProto:
    """Returns a model whose large float32 weights are stored in 16 bits and cast to float32 in the graph.

    onnxruntime casts them once, when it loads the file: speed and memory stay those of float32, on any device.

    Raises:
        InputError: A weight does not fit the range of float16.
    """
    half = HALF[dtype]
    result = ModelProto()
    result.CopyFrom(model)
    casts = []
    for tensor in result.graph.initializer:
        if not _is_large(tensor):
            continue
        values = numpy_helper.to_array(tensor)
        if dtype == 'fp16' and not np.abs(values).max() <= np.finfo(np.float16).max:
            raise InputError(f'{tensor.name} has values outside the range of float16 (65504): use bfloat16')
        stored = f'{tensor.name}_{half.name}'
        casts.append(helper.make_node('Cast', [stored], [tensor.name], f'{stored}_cast', to=TensorProto.FLOAT))
        tensor.CopyFrom(numpy_helper.from_array(values.astype(half), stored))
    nodes = [*casts, *result.graph.node]
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    _set_metadata(result, model, half.name)
    return result


def quantise_dynamic(path_in: str | os.PathLike, path_out: str | os.PathLike) -> None:
    """Writes a model whose matrix products are computed in 8 bits; each scales its input as it comes.

    Convolutions stay in float32: with scales of each input, onnxruntime computes them more slowly than in float32.

    Raises:
        InputError: The file cannot be read, or there is nothing to quantise.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = _load(path_in)
    names = [node.name for node in _layers(model, path_in, 'MatMul', 'Gemm')]
    names += [f'{name}_MatMul' for name in names]  # what the library makes of a Gemm first
    with atomic_write(path_out) as temporary:
        with _quiet():
            quantize_dynamic(model, temporary, nodes_to_quantize=names, per_channel=True, weight_type=QuantType.QInt8)
        result = _sorted(onnx.load(temporary))
        _set_metadata(result, model, 'int8_dynamic')
        onnx.save(result, temporary)


def quantise_static(
    path_in: str | os.PathLike, path_out: str | os.PathLike, batches: Iterable[dict[str, np.ndarray]]
) -> None:
    """Writes a model whose convolutions and matrix products are computed in 8 bits, with scales from example inputs.

    Args:
        path_in: The float32 file.
        path_out: The file to write, atomically.
        batches: Inputs as onnxruntime takes them, of any sizes. Each is used once and not kept: a generator over a
            folder, or ``rich.progress.track`` of one, does.

    Raises:
        InputError: The file cannot be read, there is nothing to quantise, ``batches`` is empty or does not fit the
            model, or an activation is not finite.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    model = _load(path_in)
    layers = _layers(model, path_in, 'Conv', 'MatMul', 'Gemm')
    # Of a convolution the output too, without which onnxruntime computes it in float32.
    tensors = {node.input[0]: None for node in layers} | {
        node.output[0]: None for node in layers if node.op_type == 'Conv'
    }
    ranges = {
        name: TensorData(lowest=low, highest=high)
        for name, (low, high) in _ranges(model, path_in, tensors, batches).items()
    }
    types = ['MatMul', 'Gemm']
    with _quiet():
        # `quantize_static` would calibrate by itself: all products, excluded or not, without optimisation, and by
        # histograms that keep every activation of every batch.
        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, ranges),
            nodes_to_quantize=[node.name for node in layers],
            nodes_to_exclude=[],
            op_types_to_quantize=['Conv', *types],
            extra_options={'OpTypesToExcludeOutputQuantization': types},
        )
        quantizer.quantize_model()
    result = _sorted(quantizer.model.model)
    _set_metadata(result, model, 'int8_static')
    with atomic_write(path_out) as temporary:
        onnx.save(result, temporary)


def _load(path: str | os.PathLike) -> ModelProto:
    """Returns the model of a file, of which every node has a name."""
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's error, or onnx's
        if isinstance(error, OSError):
            raise
        raise InputError(f'{path} is not an ONNX file: {error}') from error
    for node in model.graph.node:
        node.name = node.name or f'{node.op_type}_{node.output[0]}'
    return model


def _layers(model: ModelProto, path: str | os.PathLike, *types: str) -> list[NodeProto]:
    """Returns the nodes to quantise, of these types: with large weights, and not the last ones before the outputs."""
    large = {tensor.name for tensor in model.graph.initializer if _is_large(tensor)}
    producers = {output: node for node in model.graph.node for output in node.output}
    # From each map of a backbone, shortcuts lead back past most layers of its stage.
    waiting = [output.name for output in model.graph.output if not output.name.startswith('feature')]
    seen, last = set(), set()
    while waiting:
        node = producers.get(waiting.pop())
        if node is None or node.name in seen:
            continue
        seen.add(node.name)
        if _has_weights(node, large):
            last.add(node.name)
        elif node.op_type not in ('Shape', 'Size'):
            waiting.extend(node.input)
    layers = [n for n in model.graph.node if n.op_type in types and _has_weights(n, large) and n.name not in last]
    if not layers:
        raise InputError(f'{path} has no layer to quantise ({", ".join(types)} with {MIN_VALUES} weights or more)')
    return layers


def _has_weights(node: NodeProto, large: set[str]) -> bool:
    return node.op_type in ('Conv', 'MatMul', 'Gemm') and node.input[1] in large


def _is_large(tensor: TensorProto) -> bool:
    # Vectors are biases, norms, and scales of 8-bit weights.
    return tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1 and np.prod(tensor.dims) >= MIN_VALUES


def _ranges(
    model: ModelProto, path: str | os.PathLike, tensors: Iterable[str], batches: Iterable[dict[str, np.ndarray]]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns the least and the greatest value of each tensor over all batches.

    The graph computes them itself and has no other outputs, so that a batch needs the memory of one prediction, and
    what follows the last tensor is not computed.
    """
    names = list(tensors)
    measuring = ModelProto()
    measuring.CopyFrom(model)
    graph = measuring.graph
    del graph.output[:]
    for name in names:
        for operator in ('ReduceMin', 'ReduceMax'):
            output = f'{name}_{operator}'
            graph.node.append(helper.make_node(operator, [name], [output], output, keepdims=0))
            graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, []))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    low, high = np.full(len(names), np.inf, np.float32), np.full(len(names), -np.inf, np.float32)
    try:
        session = onnxruntime.InferenceSession(
            measuring.SerializeToString(), options, providers=['CPUExecutionProvider']
        )
        for batch in batches:
            found = np.stack(session.run(None, batch)).reshape(-1, 2)
            low, high = np.minimum(low, found[:, 0]), np.maximum(high, found[:, 1])
    except InputError:
        raise
    except Exception as error:  # onnxruntime's exceptions have no common base class
        raise InputError(f'{path} cannot be calibrated: {" ".join(str(error).split())[:300]}') from error
    for name, least, greatest in zip(names, low, high, strict=True):
        if not np.isfinite([least, greatest]).all():
            raise InputError(f'{path} cannot be calibrated: {name} has no finite range; are there images?')
    return dict(zip(names, zip(low, high, strict=True), strict=True))


def _sorted(model: ModelProto) -> ModelProto:
    """Returns a model with its nodes in order; the library's own sorting overlooks what the body of a Scan takes."""
    graph = onnx_ir.from_proto(model)
    graph.graph.sort()
    return onnx_ir.to_proto(graph)


def _set_metadata(result: ModelProto, model: ModelProto, precision: str) -> None:
    """Gives a model the metadata and producer of the one it was made of, and its ``precision``."""
    helper.set_model_props(result, {prop.key: prop.value for prop in model.metadata_props} | {'precision': precision})
    result.producer_name, result.producer_version = model.producer_name, model.producer_version


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides the warnings of onnxruntime's quantiser, which logs to the root logger."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
