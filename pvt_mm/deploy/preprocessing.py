"""The test pipeline of a config as plain values, and as an ONNX graph in front of an exported model.

The graph has standard operators only and computes what :mod:`pvt_mm.serving.preprocessing` does: OpenCV's bilinear
resizing to the bit, in integers as there; Pillow's bicubic with the sums in float32, which changes a few of a million
values by 1.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from mmengine.config import Config

from pvt_mm.apis.channel_checks import channels_of
from pvt_mm.apis.config import innermost_dataset, type_name
from pvt_mm.utils.errors import InputError

if TYPE_CHECKING:
    import onnx

LOADERS = ('LoadImageFromFile', 'LoadImageFromNDArray')
METHODS = (('cv2', 'bilinear'), ('pillow', 'bicubic'))  # backends and interpolations of resizing
Value = str | np.ndarray | np.generic  # the name of a value in a graph, or a constant
PREFIX = 'preprocessing/'  # of all names in the graph but that of its input


def describe(config: Config) -> dict | None:
    """Returns what :func:`require` does, or None if the test pipeline has a step that is not supported."""
    try:
        return require(config)
    except InputError:
        return None


def require(config: Config) -> dict:
    """Returns a config's test pipeline and data preprocessor as plain values, ``preprocessing`` in a file's metadata.

    Returns:
        ``channels``; ``steps``, dicts with the names and arguments of MMCV's transforms; ``order`` of the first three
        normalised channels, RGB or BGR; ``mean`` and ``std`` in that order, or None; ``pad_divisor``, ``pad_value``
        and ``pad_size``, the least height and width, or None.

    Raises:
        InputError: There is no test pipeline, or a step of it is not supported; the message names it.
    """
    loader = config.get('test_dataloader') or {}
    pipeline = innermost_dataset(loader.get('dataset') or {}).get('pipeline')
    if not pipeline:
        raise InputError('test_dataloader.dataset.pipeline is not set in the config: it turns an image into an input')
    channels, steps, reverses = channels_of(config), [], True  # OpenCV's images are BGR
    for i, step in enumerate(pipeline):
        name = type_name(step)
        where = f'test_dataloader.dataset.pipeline.{i}'
        if name in LOADERS and not step.get('to_float32'):
            _check_loader(step, where)
            reverses = step.get('imdecode_backend') != 'tifffile'
        elif name in STEPS:
            steps.append(STEPS[name](step, where, channels))
        elif 'Annotation' not in name and not name.startswith('Pack'):
            raise _not_supported(name, where, 'remove it')
    settings = config.model.get('data_preprocessor') or {'type': 'None'}
    if type_name(settings) not in PADDINGS:
        known = ', '.join(PADDINGS)
        raise _not_supported(type_name(settings), 'model.data_preprocessor', f'the types are {known}')
    reverses ^= bool(settings.get('bgr_to_rgb') or settings.get('rgb_to_bgr'))
    mean, std = ([float(x) for x in settings.get(name) or ()] for name in ('mean', 'std'))
    copies = channels if len(mean) == 1 else 1
    return dict(
        channels=channels,
        steps=steps,
        order='BGR' if reverses else 'RGB',
        mean=mean * copies or None,
        std=std * copies or None,
        **PADDINGS[type_name(settings)](settings),
    )


def _not_supported(name: str, where: str, what: str) -> InputError:
    return InputError(f'{name} ({where}) cannot be exported: {what}, or export --part backbone')


def _check_loader(step: dict, where: str) -> None:
    """Raises an InputError if a transform loads other pixels than :func:`pvt_mm.serving.images.read_image`."""
    for name, known in (('color_type', ('color', 'unchanged')), ('imdecode_backend', ('cv2', 'pillow', 'tifffile'))):
        value = step.get(name) or known[0]
        if value not in known:
            raise _not_supported(f'{name}={value}', where, f'set it to {" or ".join(known)}')


def _describe_resize(step: dict, where: str, channels: int) -> dict:
    scale = step.get('scale')
    scale = [scale, scale] if isinstance(scale, (int, float)) else list(scale or ())
    method = step.get('backend', 'cv2'), step.get('interpolation', 'bilinear')
    if len(scale) != 2 or min(scale) < 1:
        raise _not_supported(f'Resize with scale={step.get("scale")}', where, 'set scale=(width, height)')
    if method not in METHODS or (method[0] == 'pillow' and channels > 4):
        known = ' or '.join(' '.join(one) for one in METHODS)
        raise _not_supported(f'Resize by {" ".join(method)} of {channels} channels', where, f'use {known}')
    ratio = bool(step.get('keep_ratio', False))
    return dict(type='Resize', scale=scale, keep_ratio=ratio, interpolation=method[1], backend=method[0])


def _describe_multiple(step: dict, where: str, channels: int) -> dict:
    divisor = step.get('size_divisor', 32)
    if step.get('interpolation') not in (None, 'bilinear') or not isinstance(divisor, int):
        raise _not_supported(f'ResizeToMultiple of {step}', where, 'use bilinear interpolation and one size_divisor')
    return dict(type='ResizeToMultiple', size_divisor=divisor, interpolation='bilinear', backend='cv2')


def _describe_crop(step: dict, where: str, channels: int) -> dict:
    size = step['crop_size']
    if step.get('auto_pad'):
        raise _not_supported('CenterCrop with auto_pad', where, 'turn it off')
    return dict(type='CenterCrop', crop_size=[size, size] if isinstance(size, int) else list(size))


STEPS: dict[str, Callable[[dict, str, int], dict]] = {
    'Resize': _describe_resize,
    'ResizeToMultiple': _describe_multiple,
    'CenterCrop': _describe_crop,
}


def _detector_padding(settings: dict) -> dict:
    divisor, value = settings.get('pad_size_divisor', 1), settings.get('pad_value', 0)
    return dict(pad_divisor=divisor, pad_value=value, pad_size=None)


def _segmentor_padding(settings: dict) -> dict:
    test, value = settings.get('test_cfg') or {}, settings.get('pad_val', 0)  # `size` itself is for training
    size = list(test['size']) if test.get('size') else None
    return dict(pad_divisor=test.get('size_divisor') or 1, pad_value=value, pad_size=size)


def _no_padding(settings: dict) -> dict:
    return dict(pad_divisor=1, pad_value=0, pad_size=None)


PADDINGS: dict[str, Callable[[dict], dict]] = {
    'DetDataPreprocessor': _detector_padding,
    'SegDataPreProcessor': _segmentor_padding,
    'ClsDataPreprocessor': _no_padding,
}


def graph(preprocessing: dict, kind: str, opset: int) -> 'onnx.ModelProto':
    """Returns the model that turns ``image``, uint8 (B, H, W, C) in RGB order, into the inputs of an exported model.

    Its outputs are the inputs' names after :data:`PREFIX`: ``image`` float32 (B, C, h, w), resized, normalised and
    padded; ``img_shape`` and ``ori_shape``, int64, heights and widths of the resized and of the original images.

    Args:
        preprocessing: What :func:`require` returns.
        kind: ``'detector'``, whose shapes are (B, 2), ``'segmentor'``, whose are (2,), or ``'classifier'``, without.
        opset: Version of ONNX's operators, 20 or later.
    """
    from onnx import helper

    g = _Graph()
    channels = preprocessing['channels']
    original = g('Shape', 'image', start=1, end=3)
    x = g('Transpose', 'image', perm=[0, 3, 1, 2])  # (B, C, H, W) uint8
    for step in preprocessing['steps']:
        x = GRAPHS[step['type']](g, x, step, channels)
    resized = g('Shape', x, start=2)
    if preprocessing['order'] == 'BGR' and channels >= 3:
        x = g('Gather', x, np.array([2, 1, 0, *range(3, channels)]), axis=1)
    x = g.cast(x, np.float32)
    if preprocessing['mean'] is not None:
        mean, std = (np.array(preprocessing[name], np.float32).reshape(-1, 1, 1) for name in ('mean', 'std'))
        x = g('Div', g('Sub', x, mean), std)
    outputs = dict(image=_pad(g, x, resized, preprocessing))
    if kind != 'classifier':
        outputs |= dict(img_shape=resized, ori_shape=original)
    if kind == 'detector':
        shape = g('Concat', g('Shape', 'image', end=1), np.array([2]), axis=0)
        outputs |= {name: g('Expand', outputs[name], shape) for name in ('img_shape', 'ori_shape')}
    shape = ['batch', 2] if kind == 'detector' else [2]
    shapes = dict(image=['batch', channels, 'height', 'width'], img_shape=shape, ori_shape=shape)
    made = helper.make_graph(
        g.nodes,
        'preprocessing',
        [_value('image', np.uint8, ['batch', 'original_height', 'original_width', channels])],
        [
            _value(g.output(value, name), np.float32 if name == 'image' else np.int64, shapes[name])
            for name, value in outputs.items()
        ],
        g.constants,
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid('', opset)], ir_version=10)


def _value(name: str, dtype: type, shape: list) -> 'onnx.ValueInfoProto':
    from onnx import helper

    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)


def merge(front: 'onnx.ModelProto', model: 'onnx.ModelProto') -> 'onnx.ModelProto':
    """Returns an exported model with the graph of :func:`graph` in front; the metadata are the model's."""
    import onnx.compose

    front = onnx.ModelProto.FromString(front.SerializeToString())
    front.ir_version = model.ir_version
    ours = {output.name for output in front.graph.output}
    pairs = [(PREFIX + one.name, one.name) for one in model.graph.input if PREFIX + one.name in ours]
    merged = onnx.compose.merge_models(
        front,
        model,
        pairs,
        name=model.graph.name,
        doc_string=model.graph.doc_string,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        domain=model.domain,
        model_version=model.model_version,
    )
    del merged.opset_import[:]
    merged.opset_import.extend(model.opset_import)
    return merged


class _Graph:
    """Collects nodes and constants: ``g('Add', x, 2.0)`` returns the name of the sum."""

    def __init__(self):
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def __call__(self, operator: str, *inputs: Value, results: int = 1, **attributes) -> str | list[str]:
        name = f'{PREFIX}{operator}_{len(self.nodes)}'
        names = [f'{name}_{i}' for i in range(results)] if results > 1 else [name]
        self._add(operator, inputs, names, **attributes)
        return names if results > 1 else name

    def output(self, value: str, name: str) -> str:
        """Makes a value an output, and returns the name of that: ``name`` after the prefix."""
        self._add('Identity', [value], [PREFIX + name])
        return PREFIX + name

    def _add(self, operator: str, inputs: Sequence[Value], outputs: list[str], **attributes) -> None:
        from onnx import helper

        names = [one if isinstance(one, str) else self._constant(one) for one in inputs]
        self.nodes.append(helper.make_node(operator, names, outputs, outputs[0], **attributes))

    def _constant(self, value: np.ndarray | np.generic) -> str:
        from onnx import numpy_helper

        name = f'{PREFIX}constant_{len(self.constants)}'
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def cast(self, x: Value, dtype: type) -> str:
        from onnx import helper

        return self('Cast', x, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def sides(self, x: str) -> tuple[str, str]:
        """Returns the height and the width of (B, C, H, W), int64 (1,)."""
        return self('Shape', x, start=2, end=3), self('Shape', x, start=3, end=4)

    def count(self, length: Value) -> str:
        """Returns 0, 1, 2, ... in float64, as many as a (1,) says."""
        return self.cast(self('Range', np.int64(0), self('Squeeze', length), np.int64(1)), np.float64)


def _resize(g: _Graph, x: str, step: dict, channels: int) -> str:
    height, width = (np.array([side]) for side in step['scale'][::-1])
    if step['keep_ratio']:
        sides = [g.cast(side, np.float64) for side in g.sides(x)]
        long, short = (g('Div', np.float64(least(step['scale'])), g(name, *sides)) for name, least in SIDES)
        factor = g('Min', long, short)
        height, width = (g.cast(g('Add', g('Mul', side, factor), np.float64(0.5)), np.int64) for side in sides)
    if step['backend'] == 'cv2':
        return _resize_bilinear(g, x, height, width)
    return _resize_bicubic(g, x, height, width, channels)


SIDES = (('Max', max), ('Min', min))


def _resize_to_multiple(g: _Graph, x: str, step: dict, channels: int) -> str:
    divisor = np.int64(step['size_divisor'])
    height, width = (g('Mul', g('Div', g('Add', side, divisor - 1), divisor), divisor) for side in g.sides(x))
    return _resize_bilinear(g, x, height, width)


def _center_crop(g: _Graph, x: str, step: dict, channels: int) -> str:
    whole = g('Shape', x, start=2)
    size = g('Min', whole, np.array(step['crop_size'][::-1]))
    middle = g('Round', g('Div', g.cast(g('Sub', whole, size), np.float64), np.float64(2)))
    first = g.cast(middle, np.int64)
    return g('Slice', x, first, g('Add', first, size), np.array([2, 3]))


GRAPHS: dict[str, Callable[[_Graph, str, dict, int], str]] = {
    'Resize': _resize,
    'ResizeToMultiple': _resize_to_multiple,
    'CenterCrop': _center_crop,
}


def _pad(g: _Graph, x: str, size: str, preprocessing: dict) -> str:
    """Pads (B, C, H, W) of the given size, int64 (2,), below and to the right."""
    if preprocessing['pad_size']:
        more = g('Max', g('Sub', np.array(preprocessing['pad_size']), size), np.int64(0))
    elif preprocessing['pad_divisor'] > 1:
        more = g('Mod', g('Neg', size), np.int64(preprocessing['pad_divisor']))
    else:
        return x
    pads = g('Concat', np.zeros(2, np.int64), more, axis=0)
    return g('Pad', x, pads, np.float32(preprocessing['pad_value']), np.array([2, 3]))


def _resize_bilinear(g: _Graph, x: str, height: Value, width: Value) -> str:
    """:func:`pvt_mm.serving.preprocessing.resize_bilinear` on (B, C, H, W) uint8.

    Axis 2 is the one whose lines are gathered, as whole lines are copied faster than single values.
    """
    H, W = g.sides(x)
    top, *h = _taps(g, H, height)
    rows = g('Concat', *_indices(g, top, H), axis=0)
    used, _, index = g('Unique', rows, sorted=1, results=3)
    top, bottom = g('Split', index, axis=0, num_outputs=2, results=2)
    x = g('Gather', x, used, axis=2)

    left, *w = _taps(g, W, width)
    outside = g('Or', g('Less', left, np.int64(0)), g('GreaterOrEqual', left, g('Sub', W, np.int64(1))))
    w = [g('Where', outside, np.int32(weight), one) for weight, one in zip((2048, 0), w, strict=True)]
    lines = g('Transpose', g.cast(x, np.int32), perm=[0, 1, 3, 2])  # (B, C, W, rows)
    parts = [_weighted(g, lines, *one) for one in zip(_indices(g, left, W), w, strict=True)]
    lines = g('Div', g('Add', *parts), np.int32(16))
    lines = g('Transpose', lines, perm=[0, 1, 3, 2])  # (B, C, rows, width)
    parts = [g('Div', _weighted(g, lines, *one), np.int32(2**16)) for one in zip((top, bottom), h, strict=True)]
    return g.cast(g('Div', g('Add', g('Add', *parts), np.int32(2)), np.int32(4)), np.uint8)


def _indices(g: _Graph, first: str, length: str) -> list[str]:
    """Returns the indices ``first`` and those after them, inside of an axis."""
    last = g('Sub', length, np.int64(1))
    return [g('Max', g('Min', one, last), np.int64(0)) for one in (first, g('Add', first, np.int64(1)))]


def _weighted(g: _Graph, lines: str, indices: str, weights: str) -> str:
    """Returns lines of axis 2, each times its weight."""
    return g('Mul', g('Gather', lines, indices, axis=2), g('Unsqueeze', weights, np.array([1])))


def _taps(g: _Graph, length: str, resized: Value) -> tuple[str, str, str]:
    """Returns the first of the two indices that each resized pixel is between, and int32 weights in 1/2048."""
    scale = g('Div', np.float64(1), g('Div', g.cast(resized, np.float64), g.cast(length, np.float64)))
    centre = g('Mul', g('Add', g.count(resized), np.float64(0.5)), scale)
    position = g.cast(g('Sub', centre, np.float64(0.5)), np.float32)
    first = g('Floor', position)
    fraction = g('Sub', position, first)
    weights = (g('Round', g('Mul', one, np.float32(2048))) for one in (g('Sub', np.float32(1), fraction), fraction))
    return g.cast(first, np.int64), *(g.cast(one, np.int32) for one in weights)


def _resize_bicubic(g: _Graph, x: str, height: Value, width: Value, channels: int) -> str:
    """Pillow's bicubic resizing on (B, C, H, W) uint8: of rows, rounded to 8 bits, then of columns, likewise.

    Where the last of two or four channels is transparency, Pillow multiplies the others by it before, and divides them
    after, unless the size stays.
    """
    H, W = g.sides(x)
    stays = g.cast(g('And', g('Equal', H, height), g('Equal', W, width)), np.int32)
    opaque = g('Mul', stays, np.int32(255))
    if channels in (2, 4):
        colours, alpha = _split_alpha(g, x, channels)
        product = g('Add', g('Mul', colours, g('Max', alpha, opaque)), np.int32(128))
        product = g('Add', product, g('Div', product, np.int32(256)))
        x = g.cast(g('Concat', g('Div', product, np.int32(256)), alpha, axis=1), np.uint8)
    x = g('Transpose', _weigh(g, x, _bicubic(g, W, width)), perm=[0, 1, 3, 2])  # (B, C, width, H)
    x = g('Transpose', _weigh(g, x, _bicubic(g, H, height)), perm=[0, 1, 3, 2])
    if channels in (2, 4):
        colours, alpha = _split_alpha(g, x, channels)
        divisor = g('Max', alpha, opaque)
        divisor = g('Where', g('Equal', divisor, np.int32(0)), np.int32(255), divisor)
        colours = g('Min', g('Div', g('Mul', colours, np.int32(255)), divisor), np.int32(255))
        x = g.cast(g('Concat', colours, alpha, axis=1), np.uint8)
    return x


def _split_alpha(g: _Graph, x: str, channels: int) -> list[str]:
    return g('Split', g.cast(x, np.int32), np.array([channels - 1, 1]), axis=1, results=2)


def _weigh(g: _Graph, x: str, weights: str) -> str:
    """Returns (B, C, n, m) uint8 times weights (m, k) in 1/2^22, rounded to uint8.

    The weights are split into digits to the base 128, from -64 to 63: products of 8 bits are exact and fast, and pairs
    of them fit into 16 bits, in which processors without VNNI add them.
    """
    digits = []
    for _ in range(4):
        lower = g('Sub', g('Mod', g('Add', weights, np.int32(64)), np.int32(128)), np.int32(64))
        digits.append(g.cast(lower, np.int8))
        weights = g('Div', g('Sub', weights, lower), np.int32(128))
    total = np.int32(0)
    for digit in digits[::-1]:
        total = g('Add', g('Mul', total, np.int32(128)), g('MatMulInteger', x, digit))
    total = g('Div', g('Add', total, np.int32(2**21)), np.int32(2**22))
    return g.cast(g('Clip', total, np.int32(0), np.int32(255)), np.uint8)


def _bicubic(g: _Graph, length: str, resized: Value) -> str:
    """Returns Pillow's weight of each pixel in each resized one, (length, resized), int32 in 1/2^22."""
    scale = g('Div', g.cast(length, np.float64), g.cast(resized, np.float64))
    stretch = g('Max', scale, np.float64(1))  # which widens the kernel where the image is reduced
    reach = g('Mul', stretch, np.float64(2))
    centre = g('Mul', g('Add', g.count(resized), np.float64(0.5)), scale)
    pixel = g('Unsqueeze', g.count(length), np.array([1]))
    low = g('Floor', g('Add', g('Sub', centre, reach), np.float64(0.5)))
    high = g('Floor', g('Add', g('Add', centre, reach), np.float64(0.5)))
    inside = g('And', g('GreaterOrEqual', pixel, low), g('Less', pixel, high))
    t = g('Abs', g('Div', g('Add', g('Sub', pixel, centre), np.float64(0.5)), stretch))
    near = _polynomial(g, t, 1.5, -2.5, 0.0, 1.0)
    far = g('Where', g('Less', t, np.float64(2)), _polynomial(g, t, -0.5, 2.5, -4.0, 2.0), np.float64(0))
    weights = g('Where', inside, g('Where', g('Less', t, np.float64(1)), near, far), np.float64(0))
    weights = g('Div', weights, g('ReduceSum', weights, np.array([0])))
    return g.cast(g('Round', g('Mul', weights, np.float64(2**22))), np.int32)


def _polynomial(g: _Graph, t: str, *coefficients: float) -> str:
    value: Value = np.float64(coefficients[0])
    for coefficient in coefficients[1:]:
        value = g('Add', g('Mul', value, t), np.float64(coefficient))
    return value
