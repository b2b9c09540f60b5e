"""Preprocessors for any number of channels: those of the libraries with 3, and channel by channel with others."""

import copy

import numpy as np
import pytest
import torch
from mmdet.models import DetDataPreprocessor
from mmdet.structures import DetDataSample
from mmengine.registry import MODELS
from mmengine.structures import InstanceData, PixelData
from mmseg.models import SegDataPreProcessor
from mmseg.structures import SegDataSample

from pvt_mm.models.cls_data_preprocessor import ClsDataPreprocessor
from pvt_mm.utils.errors import InputError

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
LIBRARIES = {
    'Det': (DetDataPreprocessor, dict(pad_size_divisor=32, pad_mask=False, pad_value=7)),
    'Seg': (SegDataPreProcessor, dict(size=(64, 96), pad_val=3, seg_pad_val=255, test_cfg=dict(size_divisor=32))),
}
OURS = {'Det': 'pvt_mm.DetDataPreprocessor', 'Seg': 'pvt_mm.SegDataPreProcessor'}


def batch(kind: str, channels: int, sizes: tuple = ((40, 60), (50, 30)), dtype=np.uint8) -> dict:
    rng = np.random.default_rng(0)
    images = [torch.from_numpy(rng.integers(0, 256, (channels, *size)).astype(dtype)) for size in sizes]
    samples = []
    for i, size in enumerate(sizes):
        meta = dict(img_path=f'{i}.tif', img_shape=size)
        if kind == 'Det':
            sample = DetDataSample(metainfo=meta)
            sample.gt_instances = InstanceData(bboxes=torch.zeros(1, 4))
        else:
            sample = SegDataSample(metainfo=meta)
            sample.gt_sem_seg = PixelData(data=torch.zeros(1, *size, dtype=torch.long))
        samples.append(sample)
    return dict(inputs=images, data_samples=samples)


def meta_of(samples: list) -> list[dict]:
    return [dict(sample.metainfo_items()) for sample in samples]


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('order', [dict(bgr_to_rgb=True), dict(rgb_to_bgr=True), {}])
@pytest.mark.parametrize('values', [dict(mean=MEAN, std=STD), dict(mean=[110.0], std=[57.0]), {}])
@pytest.mark.parametrize('kind', LIBRARIES)
def test_with_three_channels_it_is_the_librarys(kind, values, order, training):
    theirs, more = LIBRARIES[kind]
    data = batch(kind, 3, sizes=((40, 60), (50, 30)) if training or kind == 'Det' else ((40, 60), (40, 60)))
    expected = theirs(**values, **order, **more)(copy.deepcopy(data), training)
    found = MODELS.build(dict(type=OURS[kind], **values, **order, **more))(data, training)
    assert torch.equal(found['inputs'], expected['inputs'])
    assert meta_of(found['data_samples']) == meta_of(expected['data_samples'])
    assert expected['inputs'].std() > 0.1


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
@pytest.mark.parametrize('channels', [1, 2, 4, 6])
@pytest.mark.parametrize('kind', LIBRARIES)
def test_each_channel_is_normalised_by_its_own_mean(kind, channels, dtype):
    mean, std = [10.0 * i for i in range(channels)], [1.0 + i for i in range(channels)]
    build = dict(type=OURS[kind], mean=mean, std=std, bgr_to_rgb=True)
    data = batch(kind, channels, sizes=((40, 60), (40, 60)), dtype=dtype)
    found = MODELS.build(build)(copy.deepcopy(data), False)['inputs']
    order = [2, 1, 0, *range(3, channels)] if channels > 2 else list(range(channels))
    for i, source in enumerate(order):
        expected = (torch.stack(data['inputs'])[:, source].float() - mean[i]) / std[i]
        torch.testing.assert_close(found[:, i, :40, :60], expected, rtol=0, atol=0)


def test_the_classifiers_preprocessor_keeps_the_fourth_channel():
    build = dict(num_classes=2, mean=[1.0, 2.0, 3.0, 4.0], std=[1.0, 2.0, 4.0, 8.0], bgr_to_rgb=True)
    images = torch.arange(4.0).view(1, 4, 1, 1).expand(2, 4, 8, 8)
    found = ClsDataPreprocessor(**build)(dict(inputs=images))['inputs']
    assert found[0, :, 0, 0].tolist() == [2 - 1, (1 - 2) / 2, (0 - 3) / 4, (3 - 4) / 8]
    with pytest.raises(ValueError, match=r'rand_augment changes colours, and mean has 4 channels'):
        ClsDataPreprocessor(**build, rand_augment=dict(num_ops=2))


@pytest.mark.parametrize('kind', LIBRARIES)
def test_what_does_not_fit_is_one_line(kind):
    with pytest.raises(ValueError, match=r'mean and std must have as many values'):
        MODELS.build(dict(type=OURS[kind], mean=[1.0] * 4, std=[1.0] * 3))
    with pytest.raises(ValueError, match='exclude each other'):
        MODELS.build(dict(type=OURS[kind], bgr_to_rgb=True, rgb_to_bgr=True))
    data = batch(kind, 4, sizes=((40, 60), (40, 60)))
    data['inputs'][1] = data['inputs'][1][:3]  # a file without the fourth channel
    with pytest.raises(InputError, match=r'^1\.tif has 3 channels, and model.data_preprocessor.mean 4 values'):
        MODELS.build(dict(type=OURS[kind], mean=[1.0] * 4, std=[1.0] * 4))(data, True)
