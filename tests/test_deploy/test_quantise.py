"""Smaller ONNX files: sizes, types, agreement with float32, and what must stay as it is."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from pvt_mm.deploy.operators import label_map
from pvt_mm.deploy.quantise import quantise_dynamic, quantise_static, store_half
from pvt_mm.deploy.segmentor import _taps
from pvt_mm.deploy.to_onnx import to_onnx
from pvt_mm.utils.errors import InputError

RANDOM = np.random.default_rng(0)
IMAGES = [RANDOM.normal(size=(1, 3, side, 48)).astype(np.float32) for side in (32, 40, 64)]


def tensor(name, *shape):
    return numpy_helper.from_array((RANDOM.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32), name)


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    """A detector in small: convolution, product, attention, a last product, and scores and boxes that decode it.

    Gemm's weights are transposed, as torch exports them. The boxes also depend on the size of a map.
    """
    node = helper.make_node
    nodes = [
        node('Conv', ['image', 'patches', 'bias'], ['map'], 'stem', strides=[4, 4]),
        node('Relu', ['map'], ['relu']),
        node('Reshape', ['relu', 'tokens_shape'], ['flat']),
        node('Transpose', ['flat'], ['tokens'], perm=[0, 2, 1]),  # (B, N, 32)
        node('MatMul', ['tokens', 'qkv'], ['queries'], 'qkv_product'),
        node('Transpose', ['queries'], ['keys'], perm=[0, 2, 1]),
        node('MatMul', ['queries', 'keys'], ['logits'], 'attention'),
        node('Softmax', ['logits'], ['weights']),
        node('MatMul', ['weights', 'queries'], ['mixed'], 'values'),
        node('Reshape', ['mixed', 'rows'], ['mixed_rows']),
        node('Gemm', ['mixed_rows', 'hidden', 'hidden_bias'], ['wide'], 'hidden_layer', transB=1),
        node('Gemm', ['wide', 'last', 'last_bias'], ['boxes'], 'last_layer', transB=1),
        node('MatMul', ['boxes', 'projection'], ['decoded'], 'decoding'),
        node('Shape', ['map'], ['size']),
        node('Cast', ['size'], ['float_size'], to=TensorProto.FLOAT),
        node('ReduceMax', ['float_size'], ['side'], keepdims=0),
        node('Mul', ['decoded', 'side'], ['result']),
    ]
    weights = [
        *(tensor('patches', 32, 3, 4, 4), tensor('bias', 32), tensor('qkv', 32, 64), tensor('hidden', 2048, 64)),
        *(tensor('hidden_bias', 2048), tensor('last', 4, 2048), tensor('last_bias', 4), tensor('projection', 4, 4)),
        numpy_helper.from_array(np.array([0, 32, -1]), 'tokens_shape'),
        numpy_helper.from_array(np.array([-1, 64]), 'rows'),
    ]
    image = helper.make_tensor_value_info('image', TensorProto.FLOAT, ['batch', 3, 'height', 'width'])
    result = helper.make_tensor_value_info('result', TensorProto.FLOAT, ['boxes', 4])
    graph = helper.make_graph(nodes, 'detector', [image], [result], weights)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid('', 20)], ir_version=10, producer_name='pytorch'
    )
    helper.set_model_props(model, {'task': 'detection', 'precision': 'float32'})
    path = tmp_path_factory.mktemp('model') / 'float32.onnx'
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def difference(path, other):
    """Returns the largest difference between two files' outputs, relative to the largest value."""
    ours, theirs = (onnxruntime.InferenceSession(str(file)) for file in (path, other))
    pairs = [(ours.run(None, {'image': image})[0], theirs.run(None, {'image': image})[0]) for image in IMAGES]
    return max(np.abs(mine - other).max() / np.abs(mine).max() for mine, other in pairs)


def check_kept(model, precision):
    assert {node.domain for node in model.graph.node} == {''}
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [('', 20)]
    assert {prop.key: prop.value for prop in model.metadata_props} == dict(task='detection', precision=precision)
    assert (model.producer_name, model.ir_version) == ('pytorch', 10)
    assert [dim.dim_param for dim in model.graph.input[0].type.tensor_type.shape.dim] == [
        'batch',
        '',
        'height',
        'width',
    ]


def types(model):
    return {one.name: one.data_type for one in model.graph.initializer}


@pytest.mark.parametrize(
    ('dtype', 'name', 'onnx_type', 'bound'),
    [('fp16', 'float16', TensorProto.FLOAT16, 1e-3), ('bf16', 'bfloat16', TensorProto.BFLOAT16, 1e-2)],
)
def test_half_weights(path, tmp_path, dtype, name, onnx_type, bound):
    before = onnx.load(path)
    model = store_half(before, dtype)
    onnx.save(model, tmp_path / 'half.onnx')
    check_kept(model, name)
    assert before == onnx.load(path)  # the argument is not changed
    stored = types(model)
    assert {key for key, kind in stored.items() if kind == onnx_type} == {
        f'{weight}_{name}' for weight in ('patches', 'qkv', 'hidden', 'last')
    }
    assert stored['hidden_bias'] == TensorProto.FLOAT  # 2,048 values, but a vector
    assert (tmp_path / 'half.onnx').stat().st_size < 0.55 * path.stat().st_size
    assert 0 < difference(path, tmp_path / 'half.onnx') < bound


def test_half_out_of_range(path):
    model = onnx.load(path)
    qkv = next(one for one in model.graph.initializer if one.name == 'qkv')
    qkv.CopyFrom(numpy_helper.from_array(np.full((32, 64), 7e4, np.float32), 'qkv'))
    with pytest.raises(InputError, match=r'^qkv has values outside the range of float16'):
        store_half(model, 'fp16')
    assert len(store_half(model, 'bf16').graph.initializer) == 10


def test_dynamic(path, tmp_path):
    out = tmp_path / 'int8.onnx'
    quantise_dynamic(path, out)
    model = onnx.load(out)
    check_kept(model, 'int8_dynamic')
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count('MatMulInteger') == 2  # the product and the hidden layer
    assert kinds.count('Conv') == 1
    stored = types(model)
    assert list(stored.values()).count(TensorProto.INT8) == 4  # weights and zero points
    assert {stored[name] for name in ('patches', 'last_Transposed', 'projection')} == {TensorProto.FLOAT}
    assert out.stat().st_size < 0.4 * path.stat().st_size
    assert 0 < difference(path, out) < 0.02


def test_static(path, tmp_path):
    out = tmp_path / 'int8.onnx'
    quantise_static(path, out, ({'image': image} for image in IMAGES))  # of three sizes
    model = onnx.load(out)
    check_kept(model, 'int8_static')
    nodes = {node.name: node for node in model.graph.node}
    producers = {output: node.op_type for node in model.graph.node for output in node.output}
    for name in ('stem', 'qkv_product', 'hidden_layer'):
        assert [producers.get(one) for one in nodes[name].input[:2]] == ['DequantizeLinear'] * 2
    for name in ('attention', 'values', 'last_layer', 'decoding'):
        assert 'DequantizeLinear' not in [producers.get(one) for one in nodes[name].input]
    assert types(model)['last'] == TensorProto.FLOAT
    assert out.stat().st_size < 0.4 * path.stat().st_size
    assert 0 < difference(path, out) < 0.05


def test_errors(path, tmp_path):
    out = tmp_path / 'int8.onnx'
    (tmp_path / 'text.onnx').write_text('no model')
    with pytest.raises(InputError, match=r'text.onnx is not an ONNX file'):
        quantise_dynamic(tmp_path / 'text.onnx', out)
    small = onnx.load(path)
    for one in small.graph.initializer:
        if one.name in ('qkv', 'hidden'):
            small.graph.input.append(helper.make_tensor_value_info(one.name, TensorProto.FLOAT, one.dims))
    kept = [one for one in small.graph.initializer if one.name not in ('qkv', 'hidden')]
    del small.graph.initializer[:]
    small.graph.initializer.extend(kept)
    onnx.save(small, tmp_path / 'small.onnx')
    with pytest.raises(InputError, match=r'small.onnx has no layer to quantise \(MatMul, Gemm'):
        quantise_dynamic(tmp_path / 'small.onnx', out)
    with pytest.raises(InputError, match='are there images'):
        quantise_static(path, out, [])
    with pytest.raises(InputError, match=r'float32.onnx cannot be calibrated: .*rank'):
        quantise_static(path, out, [{'image': IMAGES[0][0]}])
    with pytest.raises(InputError, match='has no finite range'):
        quantise_static(path, out, [{'image': np.full_like(IMAGES[0], np.nan)}])
    assert sorted(file.name for file in tmp_path.iterdir()) == ['small.onnx', 'text.onnx']


def test_label_maps_keep_their_order(tmp_path):
    """The body of a Scan takes the scores of a node before it."""

    class Model(torch.nn.Module):
        task, outputs = 'semantic_segmentation', ('labels',)

        def __init__(self):
            super().__init__()
            self.first, self.fc = torch.nn.Conv2d(3, 64, 3, padding=1), torch.nn.Linear(64, 64)
            self.last = torch.nn.Conv2d(64, 32, 1)

        def forward(self, image, img_shape, ori_shape):
            x = self.fc(self.first(image).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            rows, columns = (_taps(side, 2 * side, False) for side in image.shape[2:])
            return label_map(self.last(x).permute(0, 2, 3, 1), *rows, *columns)

    torch.manual_seed(0)
    model = Model().eval()
    onnx.save(to_onnx(model, 3), tmp_path / 'float32.onnx')
    image = torch.randn(1, 3, 64, 96)
    feeds = dict(image=image.numpy(), img_shape=np.array([64, 96]), ori_shape=np.array([64, 96]))
    expected = model(image, None, None).numpy()
    inputs = {one.name for one in onnx.load(tmp_path / 'float32.onnx').graph.input}
    feeds = {name: value for name, value in feeds.items() if name in inputs}
    quantise_dynamic(tmp_path / 'float32.onnx', tmp_path / 'dynamic.onnx')
    onnx.checker.check_model(onnx.load(tmp_path / 'dynamic.onnx'))
    (labels,) = onnxruntime.InferenceSession(tmp_path / 'dynamic.onnx').run(None, feeds)
    assert labels.shape == (1, 128, 192)
    assert (labels == expected).mean() > 0.9
    # NOTE: onnxruntime 1.32 aborts when it loads the static one, which export_model refuses.
