"""What the package itself exports: light until it is used, and the same as the tools."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import BaseDataElement, InstanceData

import pvt_mm
from pvt_mm.analysis.predictor import find_classes
from pvt_mm.apis import installed
from pvt_mm.apis.config import load_config
from pvt_mm.apis.inference import dataset_meta
from pvt_mm.checkpoint import reader
from pvt_mm.utils.errors import InputError
from tests.conftest import ROOT, TINY_ARCH
from tests.test_tools.test_train_and_test import DETECTOR
from tools import demo

LIGHT = """
import sys
import pvt_mm
assert pvt_mm.__version__
assert not {'torch', 'mmengine', 'mmcv', 'numpy', 'PIL'} & set(sys.modules), sorted(sys.modules)
assert {'PVT', 'PVTv2', 'Predictor', 'train', '__version__'} <= set(dir(pvt_mm))
assert not hasattr(pvt_mm, 'Trainer')
assert not hasattr(pvt_mm, '__wrapped__')
"""


@pytest.fixture(scope='module')
def trained(tmp_path_factory, shapes) -> tuple[Path, Path]:
    """A config and the checkpoint of its untrained detector, which predicts boxes of any score."""
    folder = tmp_path_factory.mktemp('api')
    text = DETECTOR.format(root=ROOT, arch=TINY_ARCH, shapes=shapes)
    (folder / 'config.py').write_text(text + '\nmodel["test_cfg"] = dict(score_thr=0.0, max_per_img=7)\n')
    config = load_config(str(folder / 'config.py'))
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(config.model)
    meta = {'dataset_meta': {'classes': ('circle', 'square', 'triangle')}}
    torch.save({'state_dict': model.state_dict(), 'meta': meta}, folder / 'epoch_1.pth')
    return folder / 'config.py', folder / 'epoch_1.pth'


def test_importing_the_package_imports_nothing_else():
    subprocess.run([sys.executable, '-c', LIGHT], check=True, cwd=ROOT)


def test_exports_are_those_of_the_modules():
    from pvt_mm.analysis.predictor import Predictor
    from pvt_mm.apis.training import train
    from pvt_mm.models import PVT, PVTv2

    assert (pvt_mm.PVT, pvt_mm.PVTv2, pvt_mm.Predictor, pvt_mm.train) == (PVT, PVTv2, Predictor, train)
    assert sorted(pvt_mm.__all__) == ['PVT', 'PVTv2', 'Predictor', '__version__', 'train']
    with pytest.raises(AttributeError, match="module 'pvt_mm' has no attribute 'pvt'"):
        pvt_mm.pvt  # noqa: B018
    # the registry's scope is still found without an import of its own
    code = "from mmengine.registry import MODELS; print(MODELS.build(dict(type='pvt_mm.PVTv2', arch='b0')).arch.depths)"
    done = subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == '(2, 2, 2, 2)'


def test_a_predictor_takes_paths_and_arrays_as_the_demo_does(trained, shapes, tmp_path):
    image = sorted((shapes / 'val2017').iterdir())[0]
    model = pvt_mm.Predictor(*map(str, trained), score_thr=0)
    result = model(image)
    assert len(result.objects) == 7
    assert result.objects == model(str(image)).objects == model(cv2.imread(str(image))).objects
    np.testing.assert_array_equal(result.image, cv2.imread(str(image)))
    assert demo.main([str(image), *map(str, trained), '--out', str(tmp_path / 'drawn'), '--score-thr', '0']) == 0
    written = json.loads((tmp_path / 'drawn/predictions.json').read_text())['images']
    assert written == {image.name: result.objects}
    result.save(tmp_path / 'mine' / image.name)
    assert (tmp_path / 'mine' / image.name).read_bytes() == (tmp_path / 'drawn' / image.name).read_bytes()
    assert result.draw().shape == (512, 512, 3)
    # a config and a work directory
    folder = trained[1].parent
    (folder / 'last_checkpoint').write_text(str(trained[1]))
    assert pvt_mm.Predictor(load_config(str(trained[0])), folder, score_thr=0)(image).objects == result.objects


def test_arrays_are_loaded_as_files_are(trained, shapes, monkeypatch):
    config = load_config(str(trained[0]))
    config.test_dataloader.dataset.pipeline[0].to_float32 = True
    image, seen = sorted((shapes / 'val2017').iterdir())[0], []
    model = pvt_mm.Predictor(config, trained[1])
    predict = model.model.test_step
    monkeypatch.setattr(model.model, 'test_step', lambda data: seen.append(data['inputs'][0]) or predict(data))
    for one in (image, cv2.imread(str(image))):
        model(one)
    assert seen[0].dtype == seen[1].dtype == torch.float32
    torch.testing.assert_close(seen[1], seen[0], rtol=0, atol=0)


def test_scores_at_the_threshold_are_kept(trained, monkeypatch):
    model = pvt_mm.Predictor(*trained, score_thr=0.5)
    scores, labels = torch.tensor([0.25, 0.5, 0.75]), torch.tensor([0, 1, 2])
    found = InstanceData(scores=scores, labels=labels, bboxes=torch.zeros(3, 4))
    monkeypatch.setattr(model.model, 'test_step', lambda data: [BaseDataElement(pred_instances=found)])
    assert [one['score'] for one in model(np.zeros((40, 60, 3), np.uint8)).objects] == [0.75, 0.5]


def test_each_predictor_has_its_own_scope(trained, monkeypatch):
    models, scopes = [pvt_mm.Predictor(*trained) for _ in range(2)], []
    models[1].scope = 'mmengine'  # as that of a classifier
    for model in models:
        test_step = model.model.test_step

        def noted(data, test_step=test_step):
            scopes.append(DefaultScope.get_current_instance().scope_name)
            return test_step(data)

        monkeypatch.setattr(model.model, 'test_step', noted)
    for model in (*models, *models):
        model(np.zeros((40, 60, 3), np.uint8))
    assert scopes == ['mmdet', 'mmengine'] * 2


def test_a_checkpoint_is_read_once(trained, monkeypatch):
    paths, read = [], reader._read_local
    monkeypatch.setattr(reader, '_read_local', lambda *values: paths.append(values[0]) or read(*values))
    pvt_mm.Predictor(*trained)
    assert paths == [str(trained[1])]


def test_classes_of_mmdetection_2_and_mmsegmentation_0(trained, shapes, tmp_path):
    content = torch.load(trained[1], weights_only=True)
    names, colors = ('bee', 'cat', 'dog'), [[i, 2 * i, 3 * i] for i in range(9)]
    torch.save({**content, 'meta': {'mmdet_version': '2.25.0', 'CLASSES': names}}, tmp_path / 'old.pth')
    model = pvt_mm.Predictor(trained[0], tmp_path / 'old.pth', score_thr=0)
    assert {one['label'] for one in model(sorted((shapes / 'val2017').iterdir())[0]).objects} <= set(names)
    assert model.classes == list(names)
    meta = dataset_meta({'meta': {'CLASSES': tuple('abcdefghi'), 'PALETTE': colors}})
    assert meta == {'classes': tuple('abcdefghi'), 'palette': colors}
    old = torch.nn.Module()
    old.dataset_meta, old.bbox_head = meta, torch.nn.Module()
    old.bbox_head.num_classes = 9
    config = Config(dict(test_dataloader=dict(dataset={})))
    assert find_classes(old, config, 'old.pth') == (list('abcdefghi'), [tuple(color) for color in colors])


def test_wrong_input_is_one_line(trained, tmp_path):
    model = pvt_mm.Predictor(*trained)
    with pytest.raises(InputError, match=r'^gone\.jpg does not exist$'):
        model('gone.jpg')
    result = model(np.zeros((40, 60, 3), np.uint8))
    with pytest.raises(InputError, match=r'drawn\.bmp is not the name of an image: it must end in \.jpg'):
        result.save(tmp_path / 'drawn.bmp')
    with pytest.raises(InputError, match=r'the config gone\.py does not exist'):
        pvt_mm.Predictor('gone.py', trained[1])
    assert list(tmp_path.iterdir()) == []


def test_installed_configs_are_found_without_a_clone(tmp_path, monkeypatch):
    name = 'configs/retinanet/pvt_t_1x.py'
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(installed, 'MIM', tmp_path / 'site' / '.mim')
    assert installed.find_config(name) == name  # neither here nor installed
    shutil.copytree(ROOT / 'configs', tmp_path / 'site' / '.mim' / 'configs')
    assert load_config(installed.find_config(name)).model.backbone.arch == 'tiny'
    Path('configs/retinanet').mkdir(parents=True)
    shutil.copy(ROOT / name, name)
    assert installed.find_config(name) == name  # the user's own goes first
    assert installed.find_config(Path('gone.py')) == 'gone.py'
