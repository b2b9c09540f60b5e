"""An ONNX file in a process of its own, which does not import PyTorch: its memory is that of a deployed model."""

import collections
import json
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from pvt_mm.analysis.benchmark.process import Stopwatch, age, peak_memory, used_memory
from pvt_mm.utils.errors import config_errors

# Operators of ONNX and onnxruntime by kind, the kinds of `measure.KINDS` and `measure.MORE_KINDS`.
KINDS = {
    'linear layers': ('MatMul', 'Gemm', 'FusedMatMul', 'FusedGemm', 'MatMulInteger', 'MatMulIntegerToFloat',
                      'DynamicQuantizeMatMul', 'QLinearMatMul', 'QGemm', 'MatMulNBits'),
    'convolutions': ('Conv', 'FusedConv', 'QLinearConv', 'ConvInteger', 'ConvTranspose'),
    'attention': ('Softmax', 'QLinearSoftmax', 'Attention', 'MultiHeadAttention'),
    'GELU': ('Gelu', 'BiasGelu', 'FastGelu', 'QuickGelu', 'Erf'),
    'norms': ('LayerNormalization', 'SkipLayerNormalization', 'GroupNorm', 'BatchNormalization',
              'InstanceNormalization', 'GroupNormalization', 'SimplifiedLayerNormalization'),
    'additions': ('Add', 'Sum', 'QLinearAdd'),
    'copies': ('Transpose', 'Concat', 'Slice', 'Split', 'Pad', 'Expand', 'Gather', 'Reshape', 'Cast', 'Tile',
               'ReorderInput', 'ReorderOutput', 'Flatten', 'Squeeze', 'Unsqueeze', 'Identity'),
    'resampling': ('Resize', 'Upsample', 'GridSample', 'RoiAlign'),
    'NMS, sorting': ('NonMaxSuppression', 'TopK', 'GatherND', 'GatherElements', 'NonZero'),
    'quantisation': ('QuantizeLinear', 'DequantizeLinear', 'DynamicQuantizeLinear'),
}  # fmt: skip
CONTROL = ('If', 'Loop', 'Scan')  # their time is that of the operators in them
_kind_of = {operator: kind for kind, operators in KINDS.items() for operator in operators}
_loaded: list = []


class OnnxFile(NamedTuple):
    """What the process is given."""

    name: str  # for errors
    path: str
    images: tuple[str, ...]
    threads: int  # 0 for onnxruntime's default


def build(file: OnnxFile) -> dict:
    """Opens the file, predicts once to warm up, and returns the fields of ``Result`` that stay the same.

    Raises:
        InputError: The file is not one of this project's, or an image cannot be read; the message names the file.
    """
    with config_errors(file.name, RuntimeError):
        from pvt_mm.serving.model import OnnxModel

        model, watch = OnnxModel(file.path, threads=file.threads), Stopwatch()
        seconds, before = age(), used_memory('cpu')
        model.session.run = watch.around(model.session.run)
        model(file.images[0])
    used_memory('cpu')
    _loaded.append((model, watch, before))
    return dict(images=1, gflops=None, memory_format='', load_seconds=seconds, loaded_memory=before and before / 1e9,
                megabytes=Path(file.path).stat().st_size / 1e6)  # fmt: skip


def step(file: OnnxFile, i: int) -> tuple[float, dict[str, float], float | None]:
    """Predicts on the image of round ``i``: its seconds, those of its parts, and the peak memory so far in GB."""
    ((model, watch, before),) = _loaded
    start = time.perf_counter()
    with config_errors(file.name, RuntimeError):
        parts = watch.parts(lambda: model(file.images[i % len(file.images)]))
    seconds, peak = time.perf_counter() - start, peak_memory('cpu')
    return seconds, parts, None if None in (peak, before) else (peak - before) / 1e9


def profile(file: OnnxFile, count: int) -> dict[str, dict[str, float]]:
    """Returns the seconds per image of each operator by kind, of the predictions of ``count`` rounds."""
    import onnxruntime

    ((model, _, _),) = _loaded
    with tempfile.TemporaryDirectory() as folder:
        options = model.session.get_session_options()
        options.enable_profiling, options.profile_file_prefix = True, f'{folder}/profile'
        model.session = onnxruntime.InferenceSession(file.path, options, providers=model.session.get_providers())
        model(file.images[0])
        for i in range(count):
            model(file.images[i % len(file.images)])
        events = json.loads(Path(model.session.end_profiling()).read_text())
    runs = [event['ts'] for event in events if event['name'] == 'model_run']
    spent: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for event in events:
        operator = event['args'].get('op_name', '')
        is_operator = event['name'].endswith('_kernel_time') and operator not in CONTROL
        if is_operator and event['ts'] >= runs[1]:  # without the first run
            spent[_kind(operator, event['args'])][operator] += event['dur'] / 1e6 / count
    return {kind: dict(operators) for kind, operators in spent.items()}


def _kind(operator: str, facts: dict) -> str:
    shapes = [shape for one in facts.get('input_type_shape', ()) for shape in one.values()]
    if operator in KINDS['linear layers'] and len(shapes) > 1 and len(shapes[1]) > 2:
        return 'attention'  # the second matrix is no weight
    if operator in KINDS['convolutions'] and len(shapes) > 1 and len(shapes[1]) == 4 and shapes[1][1] == 1:
        return 'depthwise convolutions'
    return _kind_of.get(operator, 'other')
