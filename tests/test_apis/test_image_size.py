"""One size for all pipelines of a config."""

from collections.abc import Iterator

import pytest
from mmengine.config import Config
from mmengine.hub import get_config

from pvt_mm.apis.image_size import size_of_tests, use_size
from pvt_mm.utils.errors import InputError
from tests.conftest import ROOT


def read(name: str) -> Config:
    return Config.fromfile(ROOT / f'configs/{name}.py')


def settings(config: object, *names: str) -> Iterator[object]:
    if isinstance(config, dict):
        yield from (config[name] for name in names if name in config)
        config = list(config.values())
    for part in config if isinstance(config, (list, tuple)) else ():
        yield from settings(part, *names)


def scales(config: Config, split: str, *names: str) -> list:
    return list(settings(config[f'{split}_dataloader'].dataset.pipeline, *names))


def test_all_sizes_of_a_detector_follow():
    config = read('retinanet/pvt_s_3x_ms')
    assert size_of_tests(config) == 800
    use_size(config, 400)
    assert scales(config, 'train', 'scale') == [[(666, 320), (666, 400)]]
    for split in ('val', 'test'):
        assert scales(config, split, 'scale') == [(666, 400)]
    assert list(settings(config.tta_pipeline, 'scale')) == [(666, 400), (333, 200), (1000, 600)]
    assert size_of_tests(config) == 400


def test_all_sizes_of_a_segmentor_follow():
    config = read('semantic_fpn/pvt_s_80k')
    config.model.test_cfg = dict(mode='slide', crop_size=(512, 512), stride=(341, 341))
    use_size(config, 128)
    assert scales(config, 'train', 'scale', 'crop_size') == [(512, 128), (128, 128)]
    assert scales(config, 'test', 'scale', 'size_divisor') == [(512, 128), 32]
    assert scales(config, 'train', 'ratio_range') == [(0.5, 2.0)]
    assert config.model.data_preprocessor.size == (128, 128)
    assert (config.model.test_cfg.crop_size, config.model.test_cfg.stride) == ((128, 128), (85, 85))
    assert list(settings(config.tta_pipeline, 'scale'))[2] == (512, 128)


def test_a_classifiers_size_is_its_crop():
    config = read('classification/pvt_s_300e')
    use_size(config, 112)
    assert scales(config, 'train', 'scale') == [112]
    assert scales(config, 'train', 'crop_ratio_range') == [(0.08, 1.0)]
    assert scales(config, 'test', 'scale', 'crop_size') == [(32768, 128), 112]


def test_joined_images_switched_pipelines_and_batches_of_one_size_follow():
    config = get_config('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py')
    use_size(config, 320)
    assert scales(config, 'train', 'img_scale', 'scale', 'crop_size', 'size')[:3] == [
        (320, 320),
        (640, 640),
        (320, 320),
    ]
    (switch,) = (hook for hook in config.custom_hooks if 'switch_pipeline' in hook)
    assert list(settings(switch.switch_pipeline, 'crop_size')) == [(320, 320)]
    yolox = get_config('mmdet::yolox/yolox_s_8xb8-300e_coco.py')
    use_size(yolox, 320)
    assert list(settings(yolox.train_dataloader.dataset.pipeline, 'border')) == [(-160, -160)]
    assert yolox.model.data_preprocessor.batch_augments[0].random_size_range == (240, 400)


@pytest.mark.parametrize('size', [31, 0, -1, 64.5, True])
def test_a_size_is_a_whole_number_from_32(size):
    with pytest.raises(InputError, match=rf'--size {size}: it must be a whole number of pixels from 32'):
        use_size(read('retinanet/pvt_s_1x'), size)


def test_a_test_pipeline_without_a_size():
    config = read('retinanet/pvt_s_1x')
    for split in ('val', 'test'):
        config[f'{split}_dataloader'].dataset.pipeline = [dict(type='LoadImageFromFile')]
    with pytest.raises(InputError, match='--size: the test pipeline of the config has no Resize or CenterCrop'):
        use_size(config, 256)
