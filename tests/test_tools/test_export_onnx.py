"""Exported models predict what PyTorch does, from images on; a file that does not is not written."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.torch_version import TorchVersion

from pvt_mm.apis.config import load_config
from pvt_mm.apis.inference import load_model
from pvt_mm.deploy import export, graphs, to_onnx, verify
from pvt_mm.deploy.segmentor import Segmentor
from pvt_mm.deploy.verify import Agreement, compare
from pvt_mm.serving.model import OnnxModel
from pvt_mm.utils.errors import InputError
from tests.test_deploy.small import LINEAR, PVT, build, configure, save
from tools import demo, export_onnx, predict_onnx

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope='module')
def detector(tmp_path_factory, shapes) -> list[str]:
    """A RetinaNet's config and checkpoint, next to the work directories ``run`` and ``empty`` and ``other.pth``."""
    folder = tmp_path_factory.mktemp('detector')
    config = configure('retinanet/pvt_t_1x', PVT, shapes)
    files = save(config, build(config), folder)
    torch.save({'layer.weight': torch.ones(1)}, folder / 'other.pth')
    for name in ('run', 'empty'):
        (folder / name).mkdir()
    (folder / 'run/last_checkpoint').write_text(str(folder / 'other.pth'))
    return files


def metadata(path: str) -> dict:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_a_detector_predicts_on_images_of_any_size_what_pytorch_does(detector, shapes, capsys, tmp_path):
    images = tmp_path / 'images'
    images.mkdir()
    image = cv2.imread(str(next((shapes / 'val2017').iterdir())))
    for name, size in {'small.png': (64, 64), 'wide.jpg': (200, 70), 'tall.png': (41, 130)}.items():
        cv2.imwrite(str(images / name), cv2.resize(image, size))
    assert export_onnx.main([*detector, '--out', 'model.onnx', '--preprocess']) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary['outputs'] == ['boxes', 'scores', 'labels']
    agreement = summary['agreement']
    # 4 images at 3 sizes, alone and with their mirror images
    assert (agreement['images'], agreement['missing']) == (36, 0)
    assert agreement['objects'] > 300
    assert agreement['box_px'] < 0.01
    assert agreement['score'] < 1e-5
    assert summary['metrics']['coco/bbox_mAP']['pytorch'] == summary['metrics']['coco/bbox_mAP']['onnxruntime']
    assert summary['metrics']['images'] == {'pytorch': 6, 'onnxruntime': 6}
    model = onnx.load('model.onnx')
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {''}
    about = metadata('model.onnx')
    assert json.loads(about['classes']) == ['circle', 'square', 'triangle']
    assert (about['task'], about['model'], about['precision']) == ('detection', 'RetinaNet', 'float32')
    session = onnxruntime.InferenceSession('model.onnx')
    assert [(one.name, one.type) for one in session.get_inputs()] == [('image', 'tensor(uint8)')]

    flags = ['--score-thr', '0.1', '--out']
    assert demo.main(['images', *detector, *flags, 'pytorch']) == 0
    assert predict_onnx.main(['images', 'model.onnx', *flags, 'onnx']) == 0
    ours, theirs = (json.loads(Path(name, 'predictions.json').read_text())['images'] for name in ('onnx', 'pytorch'))
    assert {name: len(objects) for name, objects in ours.items()} == {name: len(theirs[name]) for name in ours}
    assert sum(map(len, ours.values())) > 10
    for name, objects in ours.items():
        for one, other in zip(objects, theirs[name], strict=True):
            assert one['label'] == other['label']
            np.testing.assert_allclose(one['bbox'], other['bbox'], atol=0.02)
            assert one['score'] == pytest.approx(other['score'], abs=2e-4)

    # A file of other weights does not agree.
    config = load_config(detector[0])
    other = load_model(config, detector[1]).cpu()
    torch.nn.init.normal_(other.bbox_head.retina_reg.weight, std=0.1)
    found = compare(other, config, OnnxModel('model.onnx'), [str(images / 'wide.jpg')])
    assert not found.holds
    assert found.box_px > 0.5 or found.missing


def test_masks_of_a_batch_with_images_of_different_sizes(tmp_path, shapes, capsys):
    config = configure('mask_rcnn/pvt_v2_b2_1x', LINEAR, shapes)
    files = save(config, build(config), tmp_path)
    folder = str(shapes / 'val2017')
    assert export_onnx.main([*files, '--out', 'model.onnx', '--half', '--images', folder, '--val-images', '2']) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary['agreement']['images'] == 48  # with a batch of the three sizes
    assert summary['precision'] == 'float16'
    assert summary['agreement']['mask_iou'] > 0.8  # with weights of 16 bits
    assert 'coco/segm_mAP' in summary['metrics']
    model = OnnxModel('model.onnx')
    image = cv2.imread(str(next((shapes / 'val2017').iterdir())))[..., ::-1]
    images = [image, cv2.resize(image, (200, 70)), cv2.resize(image, (31, 130))]
    together, alone = model.run(images), [model.run([one])[0] for one in images]
    for one, other, pixels in zip(together, alone, images, strict=True):
        assert one['masks'].shape == (len(one['scores']), *pixels.shape[:2])
        assert one['masks'].any()
        assert one['boxes'][:, 2::2].max() <= pixels.shape[1] + 0.01
        assert len(other['masks']) > 3
    # The padding of the batch changes what the network sees of the others, but not of the largest.
    largest = max(range(3), key=lambda i: images[i].shape[0] / images[i].shape[1])
    assert together[largest]['scores'].shape == alone[largest]['scores'].shape


def test_backbone(detector, capsys):
    assert export_onnx.main([*detector, '--out', 'out.onnx', '--part', 'backbone']) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary['outputs'], summary['task']) == (['feature0', 'feature1'], 'features')
    assert summary['difference'] < 1e-5
    model = load_model(load_config(detector[0]), detector[1]).cpu()
    session = onnxruntime.InferenceSession('out.onnx')
    for batch, height, width in [(5, 96, 160), (1, 333, 64), (2, 129, 255)]:
        image = torch.randn(batch, 3, height, width)
        with torch.no_grad():
            expected = model.backbone(image)
        for mine, theirs in zip(expected, session.run(None, {'image': image.numpy()}), strict=True):
            np.testing.assert_allclose(theirs, mine.numpy(), rtol=1e-4, atol=1e-4)
    steps = json.loads(metadata('out.onnx')['preprocessing'])
    assert (steps['mean'], steps['order']) == ([123.675, 116.28, 103.53], 'RGB')


def test_a_module_that_cannot_be_exported_is_named():
    class Branching(torch.nn.Module):
        task, outputs = 'classification', ('scores',)

        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(InputError, match=r'cannot be exported with dynamic sizes: '):
        to_onnx.to_onnx(Branching(), 3)


def test_a_backbone_that_differs_is_not_written(detector, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(export, 'TOLERANCE', 0.0)
    Path('out.onnx').write_bytes(b'the one before')
    assert export_onnx.main([*detector, '--out', 'out.onnx', '--part', 'backbone']) == 2
    assert 'onnxruntime differs from PyTorch by ' in capsys.readouterr().err
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [('out.onnx', b'the one before')]


def test_what_counts_as_agreement():
    boxes = np.array([[0, 0, 10, 10], [20, 20, 40, 50], [20, 20, 40, 50]], np.float32)
    ours = dict(boxes=boxes, scores=np.array([0.9, 0.5, 0.0503], np.float32), labels=np.array([1, 0, 2]))

    def agree(cut: float = 0.05, **changes) -> Agreement:
        found = Agreement()
        found.add(ours, {**ours, **changes}, cut)
        return found

    assert agree().holds
    assert agree(scores=ours['scores'] + 0.002).score == pytest.approx(0.002, abs=1e-6)
    assert not agree(scores=ours['scores'] + 0.002).holds
    assert agree(boxes=boxes + 0.4).holds
    assert not agree(boxes=boxes + 0.6).holds
    assert agree(labels=np.array([1, 1, 2])).missing == 1
    first = {name: values[:2] for name, values in ours.items()}
    assert agree(**first).holds  # the third is within 1e-3 of the threshold
    assert not agree(0.0, **first).holds
    masks = np.zeros((3, 60, 60), bool)
    masks[:, :20, :20] = True
    ours['masks'] = masks
    fewer = masks.copy()
    fewer[0, 0, :20] = False
    assert agree(masks=fewer).mask_iou == pytest.approx(380 / 400)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['gone.py', 'epoch_1.pth'], 'the config gone.py does not exist'),
        (['config.py', 'gone.pth'], 'the checkpoint gone.pth does not exist'),
        (['config.py', 'epoch_1.pth', '--out', 'out.pt'], '--out out.pt: name a file that ends in .onnx'),
        (['config.py', 'run'], 'other.pth does not match the model'),
        (['config.py', 'empty'], 'error: empty has no checkpoint'),
        (['config.py', 'other.pth'], 'other.pth does not match the model'),
        (['config.py', 'epoch_1.pth', '--cfg-options', 'model.type=RetinaNot'], 'cannot be built'),
        (['config.py', 'epoch_1.pth', '--half', '--int8'], '--half and --int8 exclude each other'),
        (['config.py', 'epoch_1.pth', '--part', 'backbone', '--preprocess'], '--part backbone takes normalised images'),
        (['config.py', 'epoch_1.pth', '--val-images', '-1'], '--val-images -1: it must not be negative'),
        (['config.py', 'epoch_1.pth', '--images', 'gone'], 'gone does not exist'),
        (['config.py', 'epoch_1.pth', '--images', 'run'], 'run has no image'),
        (
            ['config.py', 'epoch_1.pth', '--cfg-options', 'data_root=gone/'],
            'or name a folder of images to compare on: --images FOLDER',
        ),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(arguments, message, detector, monkeypatch, capsys):
    monkeypatch.chdir(Path(detector[0]).parent)
    assert export_onnx.main(arguments) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error:')]
    assert len(error) == 1
    assert message in error[0]
    assert not list(Path().glob('*.onnx'))


def test_without_onnx_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(InputError, match=r"^exporting to ONNX: .* onnxscript .*; pip install 'pvt_mm\[onnx\]'$"):
        export.check_packages()
    monkeypatch.setattr(torch, '__version__', TorchVersion('2.5.1'))
    with pytest.raises(InputError, match=r'^exporting to ONNX needs torch 2.6 or later, and this is 2.5.1$'):
        export.check_packages()


def test_extra_objects_nan_and_nothing_are_no_agreement():
    boxes = np.array([[0, 0, 10, 10], [20, 20, 40, 50]], np.float32)
    one = dict(boxes=boxes[:1], scores=np.array([0.9], np.float32), labels=np.array([1]))
    two = dict(boxes=boxes, scores=np.array([0.9, 0.8], np.float32), labels=np.array([1, 0]))
    none = {name: values[:0] for name, values in one.items()}
    for expected, found in ((one, two), (none, one), (none, none), (one, {**one, 'scores': one['scores'] * np.nan})):
        agreement = Agreement()
        agreement.add(expected, found, 0.05)
        assert not agreement.holds
    assert not np.isnan(agreement.box_px)
    scores = Agreement()
    scores.add(dict(scores=np.array([0.5, 0.5])), dict(scores=np.array([0.5, np.nan])))
    assert not scores.holds


@pytest.mark.parametrize('what', ['agreement', 'metric', 'nothing'])
def test_a_file_that_predicts_something_else_is_not_written(what, detector, monkeypatch, tmp_path, capsys):
    config = load_config(detector[0])
    model = load_model(config, detector[1]).cpu()
    found = Agreement(images=1, objects=0 if what == 'nothing' else 100, missing=50 if what == 'agreement' else 0)
    monkeypatch.setattr(to_onnx, 'to_onnx', lambda *_, **__: onnx.ModelProto())
    monkeypatch.setattr(export, 'OnnxModel', lambda path: None)
    monkeypatch.setattr(verify, 'compare', lambda *_: found)
    points = iter([{'coco/bbox_mAP': 40.0, 'images': 9}, {'coco/bbox_mAP': 39.8, 'images': 9}])
    monkeypatch.setattr(verify, 'evaluate', lambda *_: next(points))
    message = {'agreement': '50 missing', 'metric': '40.00 with PyTorch and 39.80', 'nothing': 'finds nothing'}[what]
    settings = export.Settings(val_images=9)
    with pytest.raises(InputError, match=message):
        export.export_model(model, config, tmp_path / 'model.onnx', settings, dict(checkpoint='epoch_1.pth'))
    assert not list(tmp_path.iterdir())


def test_segmentors_of_static_int8_are_refused(detector, monkeypatch, tmp_path):
    config = load_config(detector[0])
    model = load_model(config, detector[1]).cpu()
    monkeypatch.setattr(graphs, 'build_graph', lambda model: Segmentor)
    with pytest.raises(InputError, match='cannot load segmentors of --int8 static: use --int8 dynamic'):
        export.export_model(model, config, tmp_path / 'model.onnx', export.Settings(int8='static'), {})
