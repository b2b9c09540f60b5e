"""Exported models without PyTorch: small ONNX files with their names and metadata."""

import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from PIL import Image

from pvt_mm.serving.model import OnnxModel
from pvt_mm.serving.preprocessing import preprocess
from pvt_mm.serving.result import Result, regions
from pvt_mm.serving.run_lengths import decode, encode
from pvt_mm.utils.errors import InputError
from tests.test_serving.models import BOXES, PREPROCESSING, PROBABILITIES, save_model

IMAGE = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
MASKS = np.zeros((4, 60, 80), bool)
MASKS[0, 10:20, 30:50] = True
LABELS = np.zeros((50, 70), np.int64)
LABELS[:, 60:] = 2


def test_every_task_gives_plain_values(tmp_path):
    boxes = save_model(tmp_path / 'boxes.onnx', 'detection', BOXES)
    expected = [
        dict(label='triangle', score=0.9, bbox=[10.0, 12.0, 30.26, 40.0]),
        dict(label='circle', score=0.5, bbox=[1.0, 2.0, 20.0, 20.0]),
    ]
    result = OnnxModel(boxes)(IMAGE)
    assert result.objects == expected
    np.testing.assert_array_equal(result.image, IMAGE)
    assert result.colors['triangle'] == (0, 158, 115)
    assert result.draw().shape == (500, 700, 3)
    assert OnnxModel(boxes, score_thr=0.5)(IMAGE).objects == expected
    assert len(OnnxModel(boxes, score_thr=0)(IMAGE).objects) == 3  # the padding is no object

    masks = OnnxModel(save_model(tmp_path / 'masks.onnx', 'instance_segmentation', {**BOXES, 'masks': MASKS}))
    found = masks(IMAGE).objects
    assert [one['mask']['size'] for one in found] == [[50, 70]] * 2  # the canvas is that of the batch
    np.testing.assert_array_equal(decode(found[0]['mask']), MASKS[0, :50, :70])

    maps = OnnxModel(save_model(tmp_path / 'maps.onnx', 'semantic_segmentation', dict(labels=LABELS)))
    assert [(one['label'], one['share']) for one in maps(IMAGE).objects] == [('circle', 0.8571), ('triangle', 0.1429)]
    assert maps(IMAGE).objects[1]['mask'] == encode(LABELS == 2)

    scores = OnnxModel(save_model(tmp_path / 'scores.onnx', 'classification', PROBABILITIES), threads=1)
    assert scores(IMAGE).objects == [
        dict(label='square', score=0.7),
        dict(label='circle', score=0.2),
        dict(label='triangle', score=0.1),
    ]


def fed(model, monkeypatch) -> list[dict]:
    """Returns a list to which the inputs of each run of a model are added."""
    session, feeds = model.session, []

    class Session:
        def run(self, names, values):
            feeds.append(values)
            return session.run(names, values)

    monkeypatch.setattr(model, 'session', Session())
    return feeds


def test_detectors_take_a_batch_of_any_sizes(tmp_path, monkeypatch):
    model = OnnxModel(save_model(tmp_path / 'masks.onnx', 'instance_segmentation', {**BOXES, 'masks': MASKS}))
    feeds = fed(model, monkeypatch)
    images = [IMAGE, IMAGE[:, :20], IMAGE[:8]]
    found = model.run(images)
    (feed,) = feeds
    assert feed['ori_shape'].tolist() == [[50, 70], [50, 20], [8, 70]]
    assert feed['img_shape'].tolist() == [[91, 128], [128, 51], [15, 128]]
    assert feed['image'].shape == (3, 3, 128, 128)
    for row, image in zip(feed['image'], images, strict=True):
        pixels, (height, width) = preprocess(image, PREPROCESSING)
        np.testing.assert_array_equal(row[:, :height, :width], pixels[:, :height, :width])
        assert not row[:, height:].any()
        assert not row[:, :, width:].any()
    assert [one['masks'].shape for one in found] == [(3, 50, 70), (3, 50, 20), (3, 8, 70)]
    model(IMAGE[:8])
    assert feeds[1]['image'].shape == (1, 3, 32, 128)  # padded as PyTorch does


def test_other_models_take_images_of_one_size_at_a_time(tmp_path, monkeypatch):
    images = [IMAGE, IMAGE[:, :20], IMAGE]
    maps = OnnxModel(save_model(tmp_path / 'maps.onnx', 'semantic_segmentation', dict(labels=LABELS)))
    whole = OnnxModel(save_model(tmp_path / 'whole.onnx', 'detection', BOXES, uint8=True))
    for model in (maps, whole):
        feeds = fed(model, monkeypatch)
        assert len(model.run(images)) == 3
        assert [len(feed['image']) for feed in feeds] == [2, 1]
    assert set(feeds[0]) == {'image'}
    np.testing.assert_array_equal(feeds[0]['image'], [IMAGE, IMAGE])
    assert whole(IMAGE).objects[0]['label'] == 'triangle'
    crop = dict(type='CenterCrop', crop_size=[64, 64])
    resize = dict(type='Resize', scale=[80, 80], keep_ratio=False, interpolation='bilinear', backend='cv2')
    steps = {**PREPROCESSING, 'steps': [resize, crop]}
    scores = OnnxModel(save_model(tmp_path / 'a.onnx', 'classification', PROBABILITIES, preprocessing=steps))
    feeds = fed(scores, monkeypatch)
    scores.run(images)
    assert [feed['image'].shape for feed in feeds] == [(3, 3, 64, 64)]


def test_images_of_four_channels(tmp_path):
    steps = {**PREPROCESSING, 'channels': 4, 'mean': [0.0] * 4, 'std': [1.0] * 4}
    model = OnnxModel(save_model(tmp_path / 'four.onnx', 'detection', BOXES, preprocessing=steps))
    four = np.dstack([IMAGE, IMAGE[..., :1]])
    Image.fromarray(four).save(tmp_path / 'four.png')
    Image.fromarray(IMAGE).save(tmp_path / 'three.png')
    for one in (four, tmp_path / 'four.png'):
        np.testing.assert_array_equal(model(one).image, IMAGE)
    with pytest.raises(InputError, match=r'three\.png has 3 channels, and the model takes 4'):
        model(tmp_path / 'three.png')
    with pytest.raises(InputError, match=r'an image must be \(H, W, 4\) uint8, got \(50, 70, 3\) uint8: convert it'):
        model(IMAGE)
    with pytest.raises(InputError, match=r'uint8 in RGB order, got .* float64'):
        OnnxModel(save_model(tmp_path / 'a.onnx', 'detection', BOXES))(IMAGE / 255)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(task='features'), r'is a backbone, which predicts nothing: export the whole model'),
        (dict(task='other'), 'has no metadata of pvt_mm: export the model with tools/export_onnx'),
        (dict(task='detection', classes='not json'), 'has no metadata of pvt_mm'),
        (dict(task='detection', preprocessing=None), 'has a step that needs PyTorch'),
    ],
)
def test_files_that_are_no_model_of_ours(options, message, tmp_path):
    path = save_model(tmp_path / 'a.onnx', outputs=BOXES, **options)
    with pytest.raises(InputError, match=rf'^{path}.* {message}'):
        OnnxModel(path)


def test_files_that_onnxruntime_cannot_run(tmp_path, monkeypatch):
    path = tmp_path / 'a.onnx'
    with pytest.raises(InputError, match=rf'^{path} does not exist'):
        OnnxModel(path)
    for content in (b'not an ONNX file', b''):
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf'^{path} is not an ONNX file that onnxruntime [\d.]+ can run: .+$'):
            OnnxModel(path)
    model = onnx.load(save_model(path, 'detection', BOXES))
    del model.metadata_props[:]
    onnx.save(model, path)
    with pytest.raises(InputError, match='has no metadata of pvt_mm'):
        OnnxModel(path)
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(InputError, match=r"running an ONNX file: .*onnxruntime.*; pip install 'onnxruntime'"):
        OnnxModel(path)


def test_only_what_the_input_causes_is_one_line(tmp_path, monkeypatch):
    for uint8 in (False, True):
        model = OnnxModel(save_model(tmp_path / 'a.onnx', 'detection', BOXES, uint8))
        assert len(model(np.zeros((1, 255, 3), np.uint8)).objects) == 2  # resized to a height of 0.502
        with pytest.raises(InputError, match=r'^the image is too thin: 257 x 1 pixels$'):
            model(np.zeros((1, 257, 3), np.uint8))
    scores = OnnxModel(save_model(tmp_path / 'b.onnx', 'classification', PROBABILITIES, uint8=True))
    scores.preprocesses = False  # now the input is of another type
    with pytest.raises(InputError, match=r'^the model cannot take an input of 1 x 3 x 96 x 128: .*INVALID_ARG.+$'):
        scores(IMAGE)

    def fail(*_):
        raise RuntimeError('std::bad_alloc')

    monkeypatch.setattr(scores, 'session', SimpleNamespace(run=fail))
    with pytest.raises(RuntimeError, match='bad_alloc'):
        scores(IMAGE)


def test_regions_that_are_too_small_have_no_label():
    labels = np.zeros((480, 640), np.int64)
    labels[:1] = 1  # 0.2 %
    result = Result(regions(labels, 'ab'), np.zeros((480, 640, 3), np.uint8), {'a': (0, 200, 0), 'b': (200, 0, 0)})
    assert [one['share'] for one in result.objects] == [0.9979, 0.0021]
    assert not result.draw()[..., 0].any()
