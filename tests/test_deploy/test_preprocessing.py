"""The test pipelines of the configs, run by MMCV, by NumPy and as an ONNX graph: the same inputs, to the bit."""

import copy
import functools

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from onnx import helper

from pvt_mm.apis.config import import_scope
from pvt_mm.apis.inference import image_steps, run_steps
from pvt_mm.deploy.preprocessing import PREFIX, describe, graph, merge, require
from pvt_mm.serving.preprocessing import preprocess
from pvt_mm.utils.errors import InputError
from tests.conftest import ROOT

# One config of each pipeline that the project has, with the kind of its model.
KINDS = {
    'retinanet/pvt_s_640_1x': 'detector',
    'detr/r50_50e': 'detector',
    'demo/retinanet_shapes': 'detector',
    'semantic_fpn/pvt_s_80k': 'segmentor',
    'classification/pvt_s_300e': 'classifier',
    'demo/classifier_shapes': 'classifier',
}
load = functools.cache(lambda name: Config.fromfile(ROOT / f'configs/{name}.py'))


def with_four_channels(name: str) -> Config:
    """Returns a config as docs/own_data.md changes it for four channels; a segmentor also pads, and keeps BGR."""
    config = copy.deepcopy(load(name))
    pipeline, model = config.test_dataloader.dataset.pipeline, config.model
    pipeline[0].update(color_type='unchanged')
    model.backbone.in_channels = 4
    model.data_preprocessor.update(mean=[123.675, 116.28, 103.53, 110.0], std=[58.395, 57.12, 57.375, 57.0])
    if name.startswith('classification'):
        model.data_preprocessor.update(rand_augment=None)
    else:
        padding = dict(test_cfg=dict(size=(300, 700)), pad_val=2)
        model.data_preprocessor.update(type='pvt_mm.SegDataPreProcessor', bgr_to_rgb=False, **padding)
        pipeline[1].update(scale=(700, 150))
        del pipeline[2]
    return config


def images(channels: int, *sizes: tuple[int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, channels), np.uint8) for size in sizes]


def run_pipeline(config: Config, pixels: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns the model's input for an RGB image, and its size before padding, by the transforms and preprocessor."""
    import_scope(config)
    order = [2, 1, 0, 3][: pixels.shape[2]]
    packed = run_steps(image_steps(config)[1:], np.ascontiguousarray(pixels[..., order]))
    more = {'num_classes': 3} if config.model.type.endswith('Classifier') else {}
    with torch.no_grad():
        data = MODELS.build({**config.model.data_preprocessor, **more})(
            dict(inputs=[packed['inputs']], data_samples=[packed['data_samples']])
        )
    return data['inputs'][0].numpy(), tuple(packed['inputs'].shape[1:])


def run_graph(preprocessing: dict, kind: str, pixels: np.ndarray) -> dict[str, np.ndarray]:
    model = graph(preprocessing, kind, opset=20)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    found = session.run(None, {'image': pixels})
    return {output.name.removeprefix(PREFIX): value for output, value in zip(session.get_outputs(), found, strict=True)}


@pytest.mark.parametrize(
    ('name', 'four'),
    [*((name, False) for name in KINDS), ('semantic_fpn/pvt_s_80k', True), ('classification/pvt_s_300e', True)],
)
def test_numpy_and_the_graph_give_what_the_pipeline_does(name, four):
    config = with_four_channels(name) if four else load(name)
    preprocessing, kind = require(config), KINDS[name]
    # enlarged, reduced, thin, exactly half of the demo's 160, and the classifier's 256, with a crop at 180.5
    sizes = [(101, 230), (37, 29), (150, 31), (256, 585)] if kind == 'classifier' else [(101, 230), (320, 320), (90, 7)]
    for pixels in images(4 if four else 3, *sizes):
        expected, size = run_pipeline(config, pixels)
        found, found_size = preprocess(pixels, preprocessing)
        assert found_size == size
        assert found.dtype == np.float32
        assert np.array_equal(found, expected)
        outputs = run_graph(preprocessing, kind, np.stack([pixels, pixels[::-1]]))
        assert np.array_equal(outputs['image'][0], expected)
        assert np.array_equal(outputs['image'][1], preprocess(pixels[::-1], preprocessing)[0])
        shapes = dict(img_shape=size, ori_shape=pixels.shape[:2])
        for key in shapes if kind != 'classifier' else ():
            assert outputs[key].tolist() == ([list(shapes[key])] * 2 if kind == 'detector' else list(shapes[key]))


def test_the_values_are_plain():
    assert require(load('retinanet/pvt_s_640_1x')) == dict(
        channels=3,
        steps=[dict(type='Resize', scale=[1333, 640], keep_ratio=True, interpolation='bilinear', backend='cv2')],
        order='RGB',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        pad_divisor=32,
        pad_value=0,
        pad_size=None,
    )


@pytest.mark.parametrize(
    ('step', 'message'),
    [
        (dict(type='Resize', scale=(64, 64), backend='pillow'), 'Resize by pillow bilinear'),
        (dict(type='CenterCrop', crop_size=8, auto_pad=True), 'CenterCrop with auto_pad'),
        (dict(type='mmdet.Pad', size_divisor=32), r'Pad \(test_dataloader.dataset.pipeline.1\)'),
    ],
)
def test_other_steps_are_named(step, message):
    config = copy.deepcopy(load('demo/classifier_shapes'))
    config.test_dataloader.dataset.pipeline[1] = step
    assert describe(config) is None
    with pytest.raises(InputError, match=message):
        require(config)
    config = copy.deepcopy(load('demo/classifier_shapes'))
    config.test_dataloader.dataset.pipeline[0].color_type = 'color_ignore_orientation'
    with pytest.raises(InputError, match=r'color_type=color_ignore_orientation .* set it to color or unchanged'):
        require(config)


def test_images_of_other_channels_or_too_thin_are_named():
    preprocessing = require(load('demo/retinanet_shapes'))
    with pytest.raises(InputError, match=r'takes uint8 \(H, W, 3\)'):
        preprocess(np.zeros((4, 4, 1), np.uint8), preprocessing)
    with pytest.raises(InputError, match='900 x 1 pixels are too thin'):
        preprocess(np.zeros((1, 900, 3), np.uint8), preprocessing)


def test_merging_connects_the_graph_and_keeps_the_metadata():
    image = helper.make_tensor_value_info('image', 1, ['batch', 3, 'height', 'width'])
    shape = helper.make_tensor_value_info('img_shape', 7, ['batch', 2])
    dims = dict(scores=['batch', 3, 'height', 'width'], sizes=['batch', 2])
    outputs = [helper.make_tensor_value_info(name, dtype, dims[name]) for name, dtype in (('scores', 1), ('sizes', 7))]
    nodes = [helper.make_node('Relu', ['image'], ['scores']), helper.make_node('Neg', ['img_shape'], ['sizes'])]
    made = helper.make_graph(nodes, 'model', [image, shape], outputs)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid('', 21)], ir_version=10, producer_name='pytorch')
    helper.set_model_props(model, dict(task='detection'))
    preprocessing = require(load('demo/retinanet_shapes'))

    merged = merge(graph(preprocessing, 'detector', 21), model)
    onnx.checker.check_model(merged, full_check=True)
    assert [one.key for one in merged.metadata_props] == ['task']
    assert merged.producer_name == 'pytorch'
    (entry,) = merged.graph.input
    sides = [side.dim_param or side.dim_value for side in entry.type.tensor_type.shape.dim]
    assert sides == ['batch', 'original_height', 'original_width', 3]
    session = onnxruntime.InferenceSession(merged.SerializeToString(), providers=['CPUExecutionProvider'])
    (pixels,) = images(3, (50, 80))
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, {'image': pixels[None]}), strict=True))
    expected, size = preprocess(pixels, preprocessing)
    assert np.array_equal(found['scores'][0], expected.clip(0))
    assert found['sizes'].tolist() == [[-size[0], -size[1]]]
