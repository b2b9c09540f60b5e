"""An exported segmentor labels the pixels of the original image as MMSegmentation does."""

import functools

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from mmseg.structures import SegDataSample

from pvt_mm.apis.config import load_config
from pvt_mm.deploy.segmentor import Segmentor
from pvt_mm.utils.errors import InputError
from tests.conftest import ROOT

onnxruntime = pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

# Two stages of one layer, since an export takes seconds per layer; linear attention, for PVTv2.
ARCHS = dict(
    PVT=dict(patch_sizes=(4, 8), sr_ratios=(3, 1)),
    PVTv2=dict(strides=(4, 8), sr_ratios=(1, 1), linear=True),
)
HEADS = {
    'semantic_fpn/pvt_v2_b2_80k': dict(in_channels=[16] * 2, in_index=[0, 1], feature_strides=[4, 32], channels=16),
    'heads/pvt_s_upernet_80k': dict(in_channels=[8, 16], in_index=[0, 1], channels=16),
    'heads/pvt_s_segformer_80k': dict(in_channels=[8, 16], in_index=[0, 1], channels=16, align_corners=True),
    'trans2seg/pvt_s_40k': dict(in_channels=(8, 16), in_index=(0, 1), embed_dims=16, num_layers=1, channels=16),
}
# Batch, padded size, size without padding, original size
SIZES = [
    (1, (64, 96), (64, 96), (64, 96)),
    (2, (128, 160), (101, 150), (202, 301)),
    (3, (96, 230), (96, 200), (47, 101)),
]


@functools.cache
def build(name: str, kind: str = 'PVT', classes: int = 4) -> torch.nn.Module:
    config = load_config(str(ROOT / f'configs/{name}.py'))
    init_default_scope(config.default_scope)
    arch = dict(embed_dims=(8, 16), depths=(1, 1), num_heads=(1, 2), mlp_ratios=(2, 2), **ARCHS[kind])
    config.model.backbone = dict(type=f'pvt_mm.{kind}', arch=arch, out_indices=(0, 1))
    if config.model.get('neck'):
        config.model.neck = dict(type='FPN', in_channels=[8, 16], out_channels=16, num_outs=2)
    config.model.auxiliary_head = None
    config.model.decode_head.update(num_classes=classes, **HEADS[name])
    torch.manual_seed(0)
    return MODELS.build(config.model).eval()


def predict(model: torch.nn.Module, image: torch.Tensor, img_shape: tuple, ori_shape: tuple) -> np.ndarray:
    height, width = image.shape[2:]
    padding = (0, width - img_shape[1], 0, height - img_shape[0])
    meta = dict(img_shape=img_shape, ori_shape=ori_shape, pad_shape=(height, width), img_padding_size=padding)
    samples = [SegDataSample(metainfo=dict(meta)) for _ in image]
    with torch.no_grad():
        return torch.cat([sample.pred_sem_seg.data for sample in model.predict(image, samples)]).numpy()


@pytest.mark.parametrize(('name', 'classes'), [*((name, 4) for name in HEADS), ('semantic_fpn/pvt_v2_b2_80k', 2)])
def test_labels_are_mmsegs(name, classes):
    model = build(name, 'PVTv2', classes)
    if classes == 2:  # one channel with a threshold
        model.decode_head.conv_seg, model.decode_head.threshold = torch.nn.Conv2d(16, 1, 1), 0.5
    assert Segmentor.fits(model)
    for batch, size, img_shape, ori_shape in SIZES:
        image = torch.randn(batch, 3, *size)
        expected = predict(model, image, img_shape, ori_shape)
        with torch.no_grad():
            found = Segmentor(model)(image, torch.tensor(img_shape), torch.tensor(ori_shape))
        assert len(np.unique(expected)) > 1
        assert found.dtype == torch.int64
        assert np.array_equal(found.numpy(), expected)


def test_exported_labels_agree_at_any_size_and_batch():
    from pvt_mm.deploy.to_onnx import to_onnx

    model = build('semantic_fpn/pvt_v2_b2_80k', 'PVTv2')
    session = onnxruntime.InferenceSession(to_onnx(Segmentor(model), 3).SerializeToString())
    for batch, size, img_shape, ori_shape in SIZES:
        image = torch.randn(batch, 3, *size)
        feeds = dict(image=image.numpy(), img_shape=np.array(img_shape), ori_shape=np.array(ori_shape))
        (labels,) = session.run(['labels'], feeds)
        expected = predict(model, image, img_shape, ori_shape)
        assert labels.dtype == np.int64
        assert labels.shape == expected.shape
        assert (labels == expected).mean() >= 0.999


def test_sliding_windows_are_refused():
    model = build('heads/pvt_s_segformer_80k')
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(model.test_cfg, 'mode', 'slide')
        with pytest.raises(InputError, match=r'^test_cfg.mode is slide: only whole images can be exported'):
            Segmentor(model)
