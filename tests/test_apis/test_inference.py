"""Loading a trained model, and the transforms that an image goes through."""

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from pvt_mm.apis.config import load_config
from pvt_mm.apis.inference import image_steps, load_model
from pvt_mm.utils.errors import CheckpointError, InputError
from tests.conftest import ROOT


def config_of(name):
    return load_config(str(ROOT / f'configs/{name}.py'))


def test_a_model_is_loaded_strictly(tmp_path):
    config, path = config_of('demo/classifier_shapes'), str(tmp_path / 'epoch_1.pth')
    with DefaultScope.overwrite_default_scope('mmengine'):
        weights = MODELS.build(config.model).state_dict()
    torch.save({'state_dict': {f'module.{key}': value for key, value in weights.items()}}, path)
    model = load_model(config, path)
    assert not model.training
    assert all(torch.equal(value.cpu(), weights[key]) for key, value in model.state_dict().items())
    del weights['head.fc.bias']
    torch.save({'state_dict': weights}, path)
    with pytest.raises(CheckpointError, match=r'epoch_1.pth does not match the model: backbone fits; head.fc: missing'):
        load_model(config, path)


@pytest.mark.parametrize('name', ['demo/retinanet_shapes', 'semantic_fpn/pvt_t_80k', 'classification/pvt_t_300e'])
def test_steps_load_an_image_and_no_annotations(name):
    steps = [type(step).__name__ for step in image_steps(config_of(name))]
    assert steps[0] == 'LoadImageFromFile'
    assert steps[-1].startswith('Pack')
    assert not any('Annotations' in step for step in steps)


def test_steps_that_are_missing_or_cannot_be_built():
    config = config_of('classification/pvt_t_300e')
    config.test_dataloader.dataset.pipeline[0].type = 'LoadNothing'
    with pytest.raises(InputError, match=r'the test pipeline cannot be built: KeyError: .*LoadNothing'):
        image_steps(config)
    config.test_dataloader.dataset.pipeline = []
    with pytest.raises(InputError, match=r'test_dataloader.dataset.pipeline is not set in the config'):
        image_steps(config)
