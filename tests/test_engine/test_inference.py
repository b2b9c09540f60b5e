"""A trained model and pictures into it."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from pvt_mm.checkpoint import CheckpointError
from pvt_mm.engine.inference import image_steps, load_model, read_picture
from pvt_mm.engine.run import load_config
from pvt_mm.errors import InputError
from tests.conftest import ROOT


def config_of(name):
    return load_config(str(ROOT / f'configs/{name}.py'))


def test_a_model_is_loaded_whole_or_not_at_all(tmp_path):
    config, path = config_of('demo/classifier_shapes'), str(tmp_path / 'epoch_1.pth')
    with DefaultScope.overwrite_default_scope('mmengine'):
        weights = MODELS.build(config.model).state_dict()
    torch.save({'state_dict': {f'module.{key}': value for key, value in weights.items()}}, path)
    model = load_model(config, path)
    assert not model.training
    assert all(torch.equal(value.cpu(), weights[key]) for key, value in model.state_dict().items())
    del weights['head.fc.bias']
    torch.save({'state_dict': weights}, path)
    with pytest.raises(CheckpointError, match=r'1 missing: head\.fc\.bias'):
        load_model(config, path)


@pytest.mark.parametrize('name', ['demo/retinanet_shapes', 'semantic_fpn/pvt_t_80k', 'classification/pvt_t_300e'])
def test_steps_are_a_pictures(name):
    steps = [type(step).__name__ for step in image_steps(config_of(name))]
    assert steps[0] == 'LoadImageFromFile'
    assert steps[-1].startswith('Pack')
    assert not any('Annotations' in step for step in steps)


def test_a_picture_is_read_upright_and_whole(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6  # held on its side
    Image.fromarray(pixels).save(tmp_path / 'a.png', exif=turned)
    np.testing.assert_array_equal(read_picture(tmp_path / 'a.png'), np.rot90(pixels, -1)[..., ::-1])
    cv2.imwrite(str(tmp_path / 'b.jpg'), pixels)
    (tmp_path / 'b.jpg').write_bytes((tmp_path / 'b.jpg').read_bytes()[:-200])
    with pytest.raises(InputError, match=r'b\.jpg is no picture that can be read'):
        read_picture(tmp_path / 'b.jpg')
