"""Small ONNX files with the names and metadata of exported models, which predict the same on every image."""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = ['circle', 'square', 'triangle']
PALETTE = [[230, 159, 0], [86, 180, 233], [0, 158, 115]]
RESIZE = dict(type='Resize', scale=[128, 96], keep_ratio=True, interpolation='bilinear', backend='cv2')
PREPROCESSING = dict(
    channels=3,
    steps=[RESIZE],
    order='RGB',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    pad_divisor=32,
    pad_size=None,
    pad_value=0,
)
TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(bool): TensorProto.BOOL,
}
# Outputs for one image.
BOXES = dict(
    boxes=np.array([[10, 12, 30.256, 40], [1, 2, 20, 20], [3, 3, 9, 9], [0, 0, 0, 0]], np.float32),
    scores=np.array([0.9, 0.5, 0.2, 0], np.float32),
    labels=np.array([2, 0, 1, -1]),
)
PROBABILITIES = dict(scores=np.array([0.2, 0.7, 0.1], np.float32))


def save_model(path: Path, task: str, outputs: dict[str, np.ndarray], uint8: bool = False, **metadata) -> Path:
    """Writes a model that repeats ``outputs`` for each image of a batch; ``metadata`` replaces entries of the file."""
    sizes = [] if task == 'classification' or uint8 else ['img_shape', 'ori_shape']
    kind, shape = (TensorProto.UINT8, ['B', 'H', 'W', 'C']) if uint8 else (TensorProto.FLOAT, ['B', 'C', 'H', 'W'])
    inputs = [helper.make_tensor_value_info('image', kind, shape)]
    two = [2] if task == 'semantic_segmentation' else ['B', 2]
    inputs += [helper.make_tensor_value_info(name, TensorProto.INT64, two) for name in sizes]
    nodes = [helper.make_node('Shape', ['image'], ['batch'], start=0, end=1)]
    constants, found = [], []
    for name, value in outputs.items():
        constants += [numpy_helper.from_array(value[None], f'{name}_one')]
        constants += [numpy_helper.from_array(np.ones(value.ndim, np.int64), f'{name}_ones')]
        nodes += [helper.make_node('Concat', ['batch', f'{name}_ones'], [f'{name}_shape'], axis=0)]
        nodes += [helper.make_node('Expand', [f'{name}_one', f'{name}_shape'], [name])]
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        found += [helper.make_tensor_value_info(name, kind, ['B', *value.shape])]
    graph = helper.make_graph(nodes, 'g', inputs, found, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=9)
    values = dict(task=task, classes=CLASSES, palette=PALETTE, preprocessing=PREPROCESSING) | metadata
    helper.set_model_props(
        model, {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    )
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
