"""Every config is discovered, built, trained for a step and tested, on generated shapes at a small size."""

import json
import math
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from pvt_mm.datasets.shapes import CLASSES
from pvt_mm.engine.run import load_config
from pvt_mm.models import PVT
from tests.conftest import ROOT

CONFIGS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / 'configs').rglob('*.py') if '_base_' not in path.parts)
PAPER = {'retinanet': 12, 'mask_rcnn': 8, 'demo': 1}


def test_every_config_is_discovered():
    counts = {folder: sum(Path(name).parts[1] == folder for name in CONFIGS) for folder in PAPER}
    assert counts == PAPER
    assert len(CONFIGS) == sum(PAPER.values())


def on_shapes(config: Config, root: Path, work_dir: Path) -> Config:
    """Turns a detector's config to a handful of 64-pixel pictures and random weights."""
    for split, year in (('train', 'train2017'), ('val', 'val2017'), ('test', 'val2017')):
        loader = config[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False, batch_size=2)
        loader.dataset.update(
            data_root=str(root),
            ann_file=f'annotations/instances_{year}.json',
            data_prefix=dict(img=f'{year}/'),
            metainfo=dict(classes=CLASSES),
            indices=2,
        )
        for step in loader.dataset.pipeline:
            if step.type in ('Resize', 'RandomResize'):
                step.scale = (64, 64) if step.type == 'Resize' else [(64, 48), (64, 64)]
        if split != 'train':
            config[f'{split}_evaluator'].ann_file = f'{root}/annotations/instances_{year}.json'
    config.model.backbone.init_cfg = None
    config.model.backbone.drop_path_rate = 0.0  # it may drop a layer from the one step, which then learns nothing
    roi_head = config.model.get('roi_head', {})
    for head in (config.model.get('bbox_head'), roi_head.get('bbox_head'), roi_head.get('mask_head')):
        if head:
            head.num_classes = len(CLASSES)
    config.model.test_cfg.get('rcnn', config.model.test_cfg).score_thr = 0.0
    config.work_dir = str(work_dir)
    config.train_cfg.max_epochs = 1
    config.default_hooks.logger.interval = 1
    config.default_hooks.checkpoint.update(interval=-1, save_last=False)  # a large one's would be 850 MB
    return config


@pytest.mark.parametrize('name', CONFIGS)
def test_config_trains_a_step_and_tests(name, shapes, tmp_path):
    config = on_shapes(load_config(str(ROOT / name)), shapes, tmp_path)
    runner = Runner.from_cfg(config)
    assert isinstance(runner.model.backbone, PVT)
    before = {key: value.clone() for key, value in runner.model.state_dict().items()}
    runner.train()
    for key, parameter in runner.model.named_parameters():
        if 'reg_convs' not in key and 'retina_reg' not in key:  # they learn only where an anchor fits
            assert not torch.equal(parameter, before[key]), key
    results = runner.model.test_step(next(iter(runner.test_dataloader)))
    for result in results:
        boxes = result.pred_instances
        assert len(boxes) > 0
        assert boxes.bboxes.isfinite().all()
        assert boxes.labels.max() < len(CLASSES)
        assert 0 <= boxes.scores.min() <= boxes.scores.max() <= 1
        if 'mask_rcnn' in name:
            assert boxes.masks.shape == (len(boxes), *result.ori_shape)
    metrics = runner.test()
    assert 'coco/bbox_mAP' in metrics
    assert ('coco/segm_mAP' in metrics) == ('mask_rcnn' in name)
    logged = [json.loads(line) for path in tmp_path.rglob('scalars.json') for line in path.read_text().splitlines()]
    assert all(math.isfinite(line['loss']) for line in logged if 'loss' in line)
    assert any('loss' in line for line in logged)


# Section 5.2 of the paper, and per arch the stochastic depth of the authors' release.
DETECTION = [
    ('pvt_t_1x', 'tiny', 12, 0.1),
    ('pvt_s_1x', 'small', 12, 0.1),
    ('pvt_m_1x', 'medium', 12, 0.0),
    ('pvt_l_1x', 'large', 12, 0.0),
    ('pvt_t_3x_ms', 'tiny', 36, 0.1),
    ('pvt_s_3x_ms', 'small', 36, 0.1),
    ('pvt_m_3x_ms', 'medium', 36, 0.0),
    ('pvt_l_3x_ms', 'large', 36, 0.0),
    ('pvt_s_640_1x', 'small', 12, 0.1),
    ('pvt_s_wide_1x', 'small_wide', 12, 0.1),
    ('pvt_s_scratch_1x', 'small', 12, 0.1),
    ('pvt_s_scratch_3x_ms', 'small', 36, 0.1),
]
WEIGHTS = 'https://github.com/whai362/PVT/releases/download/v2/pvt_{}.pth'


@pytest.mark.parametrize(('name', 'arch', 'epochs', 'drop_path'), DETECTION)
def test_retinanet_recipes_are_the_papers(name, arch, epochs, drop_path):
    config = Config.fromfile(ROOT / f'configs/retinanet/{name}.py')
    backbone = config.model.backbone
    assert backbone.arch == arch
    assert backbone.get('drop_path_rate', 0.1) == drop_path
    if 'scratch' in name:
        assert backbone.init_cfg is None
    elif arch != 'small_wide':  # never published
        assert backbone.init_cfg.checkpoint == WEIGHTS.format(arch)
    assert config.optim_wrapper.optimizer == dict(type='AdamW', lr=1e-4, weight_decay=1e-4)
    assert config.train_dataloader.batch_size * 8 == config.auto_scale_lr.base_batch_size == 16
    assert config.train_cfg.max_epochs == epochs
    assert config.param_scheduler[1].milestones == [epochs * 2 // 3 if epochs == 12 else 27, epochs * 11 // 12]
    assert config.param_scheduler[1].end == epochs
    assert config.param_scheduler[1].gamma == 0.1
    warm_up = {key: value for key, value in config.param_scheduler[0].items() if key != '_scope_'}
    assert warm_up == dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500)
    test = next(step for step in config.test_dataloader.dataset.pipeline if step.type == 'Resize')
    train = next(step for step in config.train_dataloader.dataset.pipeline if 'Resize' in step.type)
    short = 640 if '640' in name else 800
    assert tuple(test.scale) == (1333, short)
    if epochs == 36:
        assert train.type == 'RandomResize'
        assert [tuple(scale) for scale in train.scale] == [(1333, 640), (1333, 800)]
        assert [step.type for step in config.train_dataloader.dataset.pipeline[3:]] == ['RandomFlip', 'PackDetInputs']
    else:
        assert tuple(train.scale) == (1333, short)
    scales = [tuple(resize.scale) for resize in config.tta_pipeline[1].transforms[0]]
    assert scales == [(1333, short), (666, short // 2), (2000, short * 3 // 2)]
    assert config.model.neck.in_channels == list(PVT(arch).arch.embed_dims)


@pytest.mark.parametrize('size', 'tsml')
@pytest.mark.parametrize('schedule', ['1x', '3x_ms'])
def test_mask_rcnns_recipes_are_retinanets(size, schedule):
    config, retinanet = (
        Config.fromfile(ROOT / f'configs/{folder}/pvt_{size}_{schedule}.py') for folder in ('mask_rcnn', 'retinanet')
    )
    for key in ('optim_wrapper', 'param_scheduler', 'auto_scale_lr'):
        assert config[key] == retinanet[key]
    assert config.model.backbone == retinanet.model.backbone
    assert config.model.neck.in_channels == retinanet.model.neck.in_channels
    assert config.train_cfg.max_epochs == retinanet.train_cfg.max_epochs
    pipeline, expected = (c.train_dataloader.dataset.pipeline for c in (config, retinanet))
    assert pipeline[1] == {**expected[1], 'with_mask': True}
    assert [*pipeline[:1], *pipeline[2:]] == [*expected[:1], *expected[2:]]


@pytest.mark.parametrize(
    ('name', 'millions'),
    [('pvt_t_1x', 32.9), ('pvt_s_1x', 44.1), ('pvt_m_1x', 63.9), ('pvt_l_1x', 81.0)],
)
def test_mask_rcnns_parameters_are_table_4s(name, millions):
    init_default_scope('mmdet')
    with torch.device('meta'):
        model = MODELS.build(Config.fromfile(ROOT / f'configs/mask_rcnn/{name}.py').model)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize(
    ('name', 'millions'),
    [('pvt_t_1x', 23.0), ('pvt_s_1x', 34.2), ('pvt_m_1x', 53.9), ('pvt_l_1x', 71.1), ('pvt_s_3x_ms', 34.2)],
)
def test_retinanets_parameters_are_table_3s(name, millions):
    init_default_scope('mmdet')
    with torch.device('meta'):
        model = MODELS.build(Config.fromfile(ROOT / f'configs/retinanet/{name}.py').model)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


def test_the_readmes_example_turns_mmdets_retinanet_into_ours(tmp_path):
    example = (ROOT / 'README.md').read_text().split('```python\n')[1].split('```')[0]
    (tmp_path / 'mine.py').write_text(f"_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'\n{example}")
    model = Config.fromfile(tmp_path / 'mine.py').model
    assert model.backbone.pop('init_cfg') == dict(type='Pretrained', checkpoint=WEIGHTS.format('small'))
    init_default_scope('mmdet')
    with torch.device('meta'):
        built = MODELS.build(model)
    assert isinstance(built.backbone, PVT)
    assert sum(p.numel() for p in built.parameters()) / 1e6 == pytest.approx(34.2, rel=0.01)


def test_configs_inherit_and_stay_short():
    for name in CONFIGS:
        lines = [line for line in (ROOT / name).read_text().splitlines() if line.strip() and not line.startswith('#')]
        if "_base_ = '" in '\n'.join(lines) and 'retinanet' in Path(name).parts:
            assert len(lines) <= 16, name
