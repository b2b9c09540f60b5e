"""Images of four channels through every tool, and configs whose parts disagree on the number of channels."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.registry import TRANSFORMS

from pvt_mm.apis.channel_checks import channels_of, check_channels
from pvt_mm.apis.config import load_config
from pvt_mm.apis.inference import load_model
from pvt_mm.datasets.image_io import read_image
from pvt_mm.utils.errors import InputError
from tests.conftest import ROOT, TINY_ARCH_V2
from tools import attention, check_dataset, demo, train

CONFIG = """
_base_ = '{root}/configs/demo/retinanet_shapes.py'
model = dict(
    data_preprocessor=dict(
        type='pvt_mm.DetDataPreprocessor', mean=[123.675, 116.28, 103.53, 110.0], std=[58.395, 57.12, 57.375, 57.0]
    ),
    backbone=dict(_delete_=True, type='pvt_mm.PVTv2', arch={arch}, in_channels=4),
    neck=dict(in_channels=[8, 16, 24, 32]),
)
load = dict(type='LoadImageFromFile', color_type='unchanged')
boxes = dict(type='LoadAnnotations', with_bbox=True)
resize = dict(type='Resize', scale=(64, 64), keep_ratio=True)
color = dict(type='pvt_mm.OnRGB', transforms=[dict(type='PhotoMetricDistortion')])
train_pipeline = [load, boxes, resize, color, dict(type='PackDetInputs')]
test_pipeline = [load, resize, boxes, {{{{_base_.pack}}}}]
alone = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=train_pipeline), **alone)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline), **alone)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=1)
model['test_cfg'] = dict(score_thr=0.0, max_per_img=5)
"""


@pytest.fixture(scope='module')
def data(tmp_path_factory, shapes) -> Path:
    """The shapes as TIFFs with a fourth channel."""
    root = tmp_path_factory.mktemp('four') / 'data'
    shutil.copytree(shapes, root, ignore=shutil.ignore_patterns('classification', 'semantic'))
    for path in list(root.rglob('*.jpg')):
        pixels = cv2.imread(str(path))
        cv2.imwrite(str(path.with_suffix('.tif')), np.dstack([pixels, 255 - pixels[..., :1]]))
        path.unlink()
    for path in (root / 'annotations').glob('*.json'):
        path.write_text(path.read_text().replace('.jpg', '.tif'))
    return root


def test_every_tool_takes_four_channels(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path('four.py').write_text(CONFIG.format(root=ROOT, arch=TINY_ARCH_V2))
    there = ['--cfg-options', f'data_root={data}/']
    assert check_dataset.main(['four.py', *there, '--out', 'samples.png']) == 0
    assert train.main(['four.py', '--work-dir', 'run', *there]) == 0
    assert demo.main([str(data / 'val2017'), 'four.py', 'run', '--out', 'drawn', '--score-thr', '0']) == 0
    image = data / 'val2017' / '000000000001.tif'
    assert attention.main([str(image), 'four.py', 'run', '--query', '20', '30', '--out', 'attention.png']) == 0
    capsys.readouterr()
    found = json.loads(Path('drawn/predictions.json').read_text())['images']
    assert found['000000000001.tif']
    drawn, pixels = cv2.imread('drawn/000000000001.tif.jpg'), cv2.imread(str(image), cv2.IMREAD_UNCHANGED)
    assert pixels.shape[2] == 4
    pixels = cv2.resize(pixels[..., :3], drawn.shape[1::-1], interpolation=cv2.INTER_CUBIC).astype(int)
    assert (np.abs(drawn - pixels).max(-1) < 30).mean() > 0.4  # the first three channels, labels aside

    model = load_model(load_config('four.py'), 'run/epoch_1.pth').cpu()
    assert model.backbone.stages[0].patch_embed.proj.weight.shape[1] == 4
    assert channels_of(load_config('four.py')) == 4  # the images that the export is compared on

    copy = Path(shutil.copytree(data, 'copy')) / 'val2017' / '000000000002.tif'
    cv2.imwrite(str(copy), cv2.imread(str(copy)))
    assert check_dataset.main(['four.py', '--cfg-options', 'data_root=copy/', '--out', 'samples.png']) == 1
    assert '000000000002.tif has 3 channels, and the model takes 4' in capsys.readouterr().out
    image = shutil.copy(copy, 'three.tif')
    assert demo.main([image, 'four.py', 'run', '--out', 'drawn']) == 2
    assert 'three.tif has 3 channels, and model.data_preprocessor.mean 4 values' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'model.data_preprocessor.type': 'DetDataPreprocessor'}, r'set model\.data_preprocessor\.type=pvt_mm\.Det'),
        (
            {'model.data_preprocessor.mean': [1.0, 2.0, 3.0]},
            r'mean has 3 values, and model\.backbone.* is 4',
        ),
        ({'model.backbone.in_channels': 3}, r'mean has 4 values, and model\.backbone\.in_channels is 3'),
        (
            {'train_dataloader.dataset.pipeline.0.color_type': 'color'},
            r'LoadImageFromFile loads 3: set train_dataloader\.dataset\.pipeline\.0\.color_type=unchanged',
        ),
        (
            {'train_dataloader.dataset.pipeline.3': dict(type='PhotoMetricDistortion')},
            r'PhotoMetricDistortion \(train_dataloader\.dataset\.pipeline\.3\) takes 3 channels, .*pvt_mm\.OnRGB',
        ),
    ],
)
def test_parts_that_disagree_are_named(options, message, tmp_path):
    path = tmp_path / 'four.py'
    path.write_text(CONFIG.format(root=ROOT, arch=TINY_ARCH_V2))
    check_channels(load_config(str(path)), 'train', 'val', 'test')
    config = load_config(str(path))
    config.merge_from_dict(options)
    with pytest.raises(InputError, match=message):
        check_channels(config, 'train')


@pytest.mark.parametrize('name', ['retinanet/pvt_s_1x', 'semantic_fpn/pvt_s_80k', 'classification/pvt_s_300e'])
def test_three_channels_need_nothing(name):
    check_channels(load_config(str(ROOT / f'configs/{name}.py')), 'train', 'val', 'test')


def test_transforms_of_colours_leave_the_other_channels(data):
    image = read_image(
        sorted((data / 'val2017').iterdir())[0],
        TRANSFORMS.build(dict(type='LoadImageFromFile', color_type='unchanged')),
    )
    step = TRANSFORMS.build(dict(type='pvt_mm.OnRGB', transforms=[dict(type='mmdet.PhotoMetricDistortion')]))
    np.random.seed(0)
    found = step(dict(img=image.copy()))['img']
    assert found.shape == image.shape
    np.testing.assert_array_equal(found[..., 3], image[..., 3])
    assert np.abs(found[..., :3] - image[..., :3]).mean() > 1
    assert 'PhotoMetricDistortion' in repr(step)
