"""configs/own_data: each recipe is short, follows the data, and keeps and stops by the metric that it evaluates."""

import pytest
from mmengine.config import Config
from mmengine.registry import HOOKS

from pvt_mm.apis.own_data import MAIN_METRICS, MODELS_OF, RECIPES, task_of, use_data
from pvt_mm.apis.published import list_published
from pvt_mm.engine import EarlyStoppingHook
from tests.conftest import ROOT
from tests.test_apis.test_own_data_config import COCO, FOLDERS, MAPS
from tests.test_configs import WEIGHTS, read

TASKS = dict(detection=COCO, instance_segmentation=COCO, semantic_segmentation=MAPS, classification=FOLDERS)
DATA = TASKS | {f'{name}_pvt_v2': data for name, data in TASKS.items()}


def test_every_recipe_is_discovered_and_described():
    folder = ROOT / 'configs/own_data'
    assert sorted(path.stem for path in folder.glob('*.py')) == sorted(DATA)
    readme = (folder / 'README.md').read_text()
    assert all(f'[{name}.py]({name}.py)' in readme for name in DATA)
    assert {path.rsplit('/')[-1] for path in RECIPES.values()} < {f'{name}.py' for name in DATA}


@pytest.mark.parametrize('name', DATA)
def test_a_recipe_is_short_and_follows_the_data(name):
    path = ROOT / f'configs/own_data/{name}.py'
    lines = path.read_text().splitlines()
    assert f'#   tools/train.py configs/own_data/{name}.py --data FOLDER' in lines
    code = [line for line in lines if line and not line.startswith('#')]
    assert code[0].startswith('_base_ = ')
    assert len(code) <= 25
    config, data = Config.fromfile(path), DATA[name]
    use_data(config, data)
    assert task_of(config, name) == MODELS_OF[data.kind]
    metric = 'coco/segm_mAP' if name.startswith('instance') else MAIN_METRICS[data.kind]
    average, stop = config.custom_hooks
    assert (average.type, average.strict_load) == ('EMAHook', False)
    assert config.default_hooks.checkpoint.save_best == stop.monitor == metric
    assert isinstance(HOOKS.build(stop), EarlyStoppingHook)
    assert stop.min_delta == (0.001 if metric.startswith('coco') else 0.1)  # AP is at most 1, the others 100
    epochs = config.train_cfg.max_epochs
    assert (config.param_scheduler[1].end, stop.patience) == (epochs, epochs // 3)
    assert config.train_dataloader.sampler.type == 'DefaultSampler'
    backbone, arch = config.model.backbone, 'v2_b2' if 'v2' in name else 'small'
    assert (backbone.type, backbone.arch) == (('pvt_mm.PVTv2', 'b2') if 'v2' in name else ('pvt_mm.PVT', 'small'))
    assert backbone.get('drop_path_rate', 0.1) == 0.1
    if name.startswith('detection'):
        (published,) = (
            one
            for one in list_published(str(ROOT / f'configs/retinanet/pvt_{arch.replace("small", "s")}_1x.py'))
            if one.source == 'MMDetection'
        )
        assert (config.load_from, backbone.init_cfg) == (published.url, None)
        assert f'{published.metrics["box AP"]} AP there' in lines[0]
    else:
        assert config.load_from is None
        assert backbone.init_cfg == dict(type='Pretrained', checkpoint=WEIGHTS.format(arch))


def test_classifiers_of_both_versions_decay_what_their_pretraining_did():
    for name, classifier in (('classification', 'pvt_s_300e'), ('classification_pvt_v2', 'pvt_v2_b2_300e')):
        assert read(f'own_data/{name}').optim_wrapper.paramwise_cfg == (
            read(f'classification/{classifier}').optim_wrapper.paramwise_cfg
        )
