"""Exported models agree with PyTorch at other sizes and batches; a file that does not agree is not written."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from mmseg.models.utils import Upsample
from mmseg.models.utils.embed import AdaptivePadding
from torch.torch_version import TorchVersion

from pvt_mm.apis import export
from pvt_mm.apis.config import load_config
from tests.conftest import ROOT
from tools import export_onnx

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')

# Two stages of one layer, since an export takes seconds per layer; R = 3 does not divide the map's sides.
ARCH = dict(
    embed_dims=(8, 16), depths=(1, 1), num_heads=(1, 2), patch_sizes=(4, 2), sr_ratios=(3, 1), mlp_ratios=(2, 2)
)
# Strides of 4 to 32, so that stage 2 of the smallest image has fewer than 7 tokens on a side.
ARCH_LINEAR = dict(
    embed_dims=(8, 16),
    depths=(1, 1),
    num_heads=(1, 2),
    strides=(4, 8),
    sr_ratios=(1, 1),
    mlp_ratios=(2, 2),
    linear=True,
)
DETECTOR = """
_base_ = '{root}/configs/retinanet/pvt_t_1x.py'
backbone = dict(arch=dict(_delete_=True, **{arch}), out_indices=(0, 1), init_cfg=None)
model = dict(backbone=backbone, neck=dict(in_channels=[8, 16]))
"""
SEGMENTOR = """
_base_ = '{root}/configs/semantic_fpn/pvt_v2_b2_80k.py'
backbone = dict(arch=dict(_delete_=True, **{arch}), out_indices=(0, 1), init_cfg=None)
head = dict(num_classes=3, in_channels=[16] * 2, in_index=[0, 1], feature_strides=[4, 32], channels=16)
model = dict(backbone=backbone, neck=dict(in_channels=[8, 16], out_channels=16, num_outs=2), decode_head=head)
"""


def make(config: str, arch: dict = ARCH) -> torch.nn.Module:
    """Writes a config and a checkpoint of it to the working directory; returns its model."""
    Path('config.py').write_text(config.format(root=ROOT, arch=arch))
    config = load_config('config.py')
    init_default_scope(config.default_scope)
    model = MODELS.build(config.model).eval()
    torch.save({'state_dict': model.state_dict()}, 'weights.pth')
    return model


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope='module')
def detector(tmp_path_factory) -> Path:
    """A folder with a detector's config and checkpoints."""
    folder = tmp_path_factory.mktemp('detector')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make(DETECTOR)
        torch.save({'layer.weight': torch.ones(1)}, 'other.pth')
        for name in ('run', 'empty'):
            Path(name).mkdir()
        Path('run/last_checkpoint').write_text('other.pth')
    return folder


def outputs(image: torch.Tensor) -> list[np.ndarray]:
    return onnxruntime.InferenceSession('out.onnx').run(None, {'image': image.numpy()})


def test_backbone_of_a_detector(capsys):
    model = make(DETECTOR)
    assert export_onnx.main(['config.py', 'weights.pth', '--out', 'out.onnx']) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary['outputs'] == ['feature0', 'feature1']
    assert summary['part'] == 'backbone'
    assert summary['difference'] < 1e-5
    for batch, height, width in [(5, 96, 160), (1, 333, 64), (2, 129, 255)]:
        image = torch.randn(batch, 3, height, width)
        with torch.no_grad():
            expected = model.backbone(image)
        for mine, theirs in zip(expected, outputs(image), strict=True):
            np.testing.assert_allclose(theirs, mine.numpy(), rtol=1e-4, atol=1e-4)
    about = {entry.key: entry.value for entry in onnx.load('out.onnx').metadata_props}
    assert json.loads(about['mean']) == [123.675, 116.28, 103.53]
    assert (about['part'], about['bgr_to_rgb']) == ('backbone', 'true')


def test_whole_semantic_fpn_of_linear_attention_predicts_what_mmseg_does(capsys):
    model = make(SEGMENTOR, ARCH_LINEAR)
    order = ['model.data_preprocessor.bgr_to_rgb=False', 'model.data_preprocessor.rgb_to_bgr=True']
    assert export_onnx.main(['config.py', 'weights.pth', '--out', 'out.onnx', '--cfg-options', *order]) == 0
    about = {entry.key: entry.value for entry in onnx.load('out.onnx').metadata_props}
    assert (about['part'], about['bgr_to_rgb'], about['rgb_to_bgr']) == ('model', 'false', 'true')
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary['part'], summary['outputs']) == ('model', ['scores'])
    for batch, height, width in [(3, 96, 160), (1, 101, 230), (2, 64, 449)]:
        image = torch.randn(batch, 3, height, width)
        meta = dict(img_shape=(height, width), ori_shape=(height, width), pad_shape=(height, width))
        with torch.no_grad():
            expected = model.encode_decode(image, [meta] * batch)
        (scores,) = outputs(image)
        assert scores.shape == (batch, 3, height, width)
        np.testing.assert_allclose(scores, expected.numpy(), rtol=1e-4, atol=1e-4)
    assert export.choose_part(model, 'backbone')[0] is model.backbone


def test_replaced_size_computations_agree_with_mmsegs():
    for size in [(64, 64), (65, 95), (101, 230)]:
        image = torch.randn(1, 2, *size)
        for padding in (AdaptivePadding(32, 32), AdaptivePadding(4, 4)):
            assert torch.equal(export._pad(padding, image), padding(image))
        for upsample in (Upsample(scale_factor=2, mode='bilinear'), Upsample(size=(7, 9))):
            assert torch.equal(export._upsample(upsample, image), upsample(image))


def test_a_module_that_differs_or_cannot_be_exported_is_not_written(tmp_path):
    class Fixed(torch.nn.Module):
        def forward(self, x):
            return x * int(x.shape[2])

    class Branching(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    class Broken(torch.nn.Module):
        def forward(self, x):
            return x * math.nan

    path = tmp_path / 'out.onnx'
    path.write_bytes(b'the one before')
    for module, message in (
        (Fixed(), 'dynamic sizes|differs from PyTorch'),
        (Branching(), 'dynamic sizes'),
        (Broken(), 'differs from PyTorch by nan'),
    ):
        with pytest.raises(export.InputError, match=message):
            export.export(module, path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [('out.onnx', b'the one before')]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['gone.py', 'weights.pth'], 'the config gone.py does not exist'),
        (['config.py', 'gone.pth'], 'the checkpoint gone.pth does not exist'),
        (['config.py', 'weights.pth', '--out', 'out.pt'], '--out out.pt: name a file that ends in .onnx'),
        (['config.py', 'run'], 'other.pth does not match the model'),
        (['config.py', 'empty'], 'error: empty has no checkpoint'),
        (['config.py', 'other.pth'], 'other.pth does not match the model'),
        (['config.py', 'weights.pth', '--part', 'model'], 'a RetinaNet is not a segmentor: use --part backbone'),
        (['config.py', 'weights.pth', '--cfg-options', 'model.type=RetinaNot'], 'cannot be built'),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(arguments, message, detector, monkeypatch, capsys):
    monkeypatch.chdir(detector)
    assert export_onnx.main(arguments) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error:')]
    assert len(error) == 1
    assert message in error[0]
    assert not list(Path().glob('*.onnx'))


def test_without_onnx_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(export.InputError, match=r"^exporting to ONNX: .* onnxscript .*; pip install 'pvt_mm\[onnx\]'$"):
        export.export(torch.nn.Identity(), 'out.onnx')
    monkeypatch.setattr(torch, '__version__', TorchVersion('2.5.1'))
    with pytest.raises(export.InputError, match=r'^exporting to ONNX needs torch 2.6 or later, and this is 2.5.1$'):
        export.export(torch.nn.Identity(), 'out.onnx')
