"""The command saves a figure of the attention, and answers wrong input with one line."""

import json

import cv2
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from pvt_mm.apis.config import load_config
from tests.conftest import ROOT, TINY_ARCH_LINEAR
from tools import attention

CONFIG = """
_base_ = '{root}/configs/demo/retinanet_shapes.py'
backbone = dict(_delete_=True, type='pvt_mm.PVTv2', arch={arch})
model = dict(backbone=backbone, neck=dict(in_channels=[8, 16, 24, 32]))
"""


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> tuple[str, str]:
    """A config and its checkpoint."""
    folder = tmp_path_factory.mktemp('run')
    (folder / 'small.py').write_text(CONFIG.format(root=ROOT, arch=TINY_ARCH_LINEAR))
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(load_config(str(folder / 'small.py')).model)
    torch.save({'state_dict': model.state_dict()}, folder / 'epoch_1.pth')
    return str(folder / 'small.py'), str(folder / 'epoch_1.pth')


def test_attention_is_plotted(trained, shapes, tmp_path, capsys):
    image, out = str(next((shapes / 'val2017').iterdir())), str(tmp_path / 'attention.png')
    flags = ['--query', '20', '50', '--stage', '3', '--head', 'each', '--out', out]
    assert attention.main([image, *trained, *flags]) == 0
    results = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert results['keys'] == [7, 7]  # of 10 x 10 tokens
    assert list(results['maximum']) == ['head 1', 'head 2', 'head 3']
    assert all(1 / 49 <= value <= 1 for value in results['maximum'].values())
    assert cv2.imread(out).std() > 5


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--query', '64', '0'], "--query 64 0 is outside of the model's input: X must be from 0 to 63"),
        (['--query', 'nan', '5'], '--query nan 5 is outside'),
        (['--query', '-1', '0'], 'X must be from 0 to 63 and Y from 0 to 63'),
        (['--query', '1', '1', '--stage', '5'], '--stage 5: the model has stages 1 to 4'),
        (['--query', '1', '1', '--layer', '9'], '--layer 9: stage 4 has layers 1 to 1'),
        (['--query', '1', '1', '--head', '9'], '--head 9: the layer has heads 1 to 4'),
        ([], '--query X Y is missing'),
        (['--out', 'x.bmp'], 'x.bmp'),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(flags, message, trained, shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    image = str(next((shapes / 'val2017').iterdir()))
    assert attention.main([image, *trained, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count('\n') == 1
    assert not list(tmp_path.iterdir())


def test_files_that_are_not_images_are_named(trained, tmp_path, capsys):
    (tmp_path / 'a.jpg').write_bytes(b'not an image')
    for name, message in (('a.jpg', 'a.jpg is truncated or not an image'), ('b.jpg', 'b.jpg does not exist')):
        assert attention.main([str(tmp_path / name), *trained, '--query', '1', '1']) == 2
        assert message in capsys.readouterr().err
