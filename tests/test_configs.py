"""Every config: its recipe and its data; one of each detector or segmentor and backbone is trained and tested.

tests/test_analysis/test_tables.py builds every model with its own channels and counts its parameters and GFLOPs.
"""

import ast
import functools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, TRANSFORMS, DefaultScope, init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData

from pvt_mm.apis.config import as_list, load_config
from pvt_mm.apis.flags import set_randomness
from pvt_mm.apis.image_size import use_size
from pvt_mm.apis.own_data import parts_of
from pvt_mm.datasets.shapes import CLASSES
from pvt_mm.engine import FiniteHook
from pvt_mm.models import ARCHS, PVT, PVTv2
from pvt_mm.models.archs import ARCHS_V2
from tests.conftest import HALF_DTYPES, ROOT

CONFIGS = sorted(
    f'{path.parent.name}/{path.stem}'
    for path in (ROOT / 'configs').rglob('*.py')
    if path.parent.name not in ('_base_', 'own_data', 'sweeps')  # tests/test_own_data_recipes.py has the recipes
)
PAPER = dict(
    retinanet=31,
    mask_rcnn=29,
    semantic_fpn=17,
    detr=2,
    trans2seg=2,
    deeplabv3plus=2,
    classification=12,
    cascade_mask_rcnn=2,
    atss=2,
    gfl=2,
    demo=4,
    heads=6,
)
FOLDERS = [folder for folder in PAPER if folder not in ('demo', 'heads')]  # which have metafiles
ARCH_NAMES = dict(t='tiny', s='small', m='medium', l='large')
WEIGHTS = 'https://github.com/whai362/PVT/releases/download/v2/pvt_{}.pth'


OWN_DATA = sorted(f'own_data/{path.stem}' for path in (ROOT / 'configs/own_data').glob('*.py'))


@functools.cache
def read(name: str) -> Config:
    """Returns configs/NAME.py, for tests that do not change it."""
    return Config.fromfile(ROOT / f'configs/{name}.py')


def stems(folder: str) -> list[str]:
    return [name.split('/')[1] for name in CONFIGS if name.startswith(f'{folder}/')]


def test_every_config_is_discovered():
    assert {folder: len(stems(folder)) for folder in PAPER} == PAPER
    assert len(CONFIGS) == sum(PAPER.values())


# ------------------------------------------------------------------------------------------------------------ training


def on_shapes(config: Config, root: Path, work_dir: Path) -> Config:
    """Changes a config to two steps on images of 64 pixels, from random weights, with narrow necks and heads."""
    to_shapes = dict(mmseg=segmentor_to_shapes, mmdet=detector_to_shapes, mmengine=classifier_to_shapes)
    for split, images in (('train', 4), ('val', 2), ('test', 2)):
        loader = config[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False, batch_size=2)
        loader.dataset.update(data_root=str(root), metainfo=dict(classes=CLASSES), indices=images)
    use_size(config, 64)
    to_shapes[config.default_scope](config, root)
    config.model.backbone.init_cfg = None
    if 'PVT' in config.model.backbone.type:
        config.model.backbone.drop_path_rate = 0.0  # it could drop a layer in both steps, which then has no gradient
    if not isinstance(config.model.backbone.get('arch'), dict):  # of the demo, which is small
        narrow(config)
    if config.model.backbone.get('norm_cfg', {}).get('requires_grad') is False:
        config.model.backbone.zero_init_residual = False  # DETR's norms are frozen: a zero would stay one
    config.work_dir = str(work_dir)
    config.default_hooks.logger.interval = 1
    config.default_hooks.checkpoint.update(interval=-1, save_last=False)  # a large model's would be 850 MB
    set_randomness(config, 0, False)
    return config


def narrow(config: Config) -> None:
    """Divides the channels of what follows the backbone by 8, but for DETR's 256; the backbone stays as it is."""
    model = config.model
    for name, value in model.items():
        takes_maps = name == 'neck' or not model.get('neck')  # whose channels are the backbone's
        for _, part in parts_of(value, name) if name != 'backbone' and 'num_queries' not in model else ():
            for key in [key for key in part if key.endswith('channels')]:
                if not (takes_maps and key.endswith('in_channels')):
                    part[key] = eighth(part[key])
            if 'stacked_convs' in part:
                part.stacked_convs = 1
    if 'num_queries' in model:
        model.encoder.num_layers = model.decoder.num_layers = 2
    if 'rpn_proposal' in (model.get('train_cfg') or {}):
        model.train_cfg.rpn_proposal.max_per_img = model.test_cfg.rpn.max_per_img = 50
        model.train_cfg.rpn.allowed_border = -1  # the largest anchors are larger than the images


def eighth(channels: int | list[int] | tuple[int, ...]) -> int | list[int]:
    return channels // 8 if isinstance(channels, int) else [C // 8 for C in channels]


def detector_to_shapes(config: Config, root: Path) -> None:
    for split, year in (('train', 'train2017'), ('val', 'val2017'), ('test', 'val2017')):
        ann_file = f'annotations/instances_{year}.json'
        config[f'{split}_dataloader'].dataset.update(ann_file=ann_file, data_prefix=dict(img=f'{year}/'))
        if split != 'train':
            config[f'{split}_evaluator'].ann_file = f'{root}/{ann_file}'
    roi_head = config.model.get('roi_head', {})
    for heads in (config.model.get('bbox_head'), roi_head.get('bbox_head'), roi_head.get('mask_head')):
        for head in as_list(heads):
            head.num_classes = len(CLASSES)
    # a few boxes, since pasting a hundred masks takes longer than training
    config.model.test_cfg.get('rcnn', config.model.test_cfg).update(score_thr=0.0, max_per_img=10)
    if 'num_queries' in config.model:
        config.model.num_queries = 20
    config.train_cfg.update(max_epochs=1, val_interval=2)  # the test evaluates


def segmentor_to_shapes(config: Config, root: Path) -> None:
    for split in ('train', 'val', 'test'):
        dataset = config[f'{split}_dataloader'].dataset
        dataset.update(type='BaseSegDataset', reduce_zero_label=True)  # ADE20KDataset accepts its own classes only
        dataset.metainfo.palette = [[200, 0, 0], [0, 200, 0], [0, 0, 200]]
    for head in (config.model.decode_head, *as_list(config.model.get('auxiliary_head'))):
        head.update(num_classes=len(CLASSES), dropout_ratio=0.0)
    config.train_cfg.update(max_iters=2, val_interval=9)


def classifier_to_shapes(config: Config, root: Path) -> None:
    for split in ('train', 'val', 'test'):
        config[f'{split}_dataloader'].dataset.data_root = str(root / 'classification')
    config.train_dataloader.sampler.selected_round = 0
    config.model.head.num_classes = len(CLASSES)
    config.train_cfg.update(max_epochs=1, val_interval=2)  # the test evaluates


def train(config: Config) -> tuple[Runner, Counter]:
    """Trains for two steps; returns the runner, and of each trained parameter the gradient's sum of absolute values."""
    runner, gradients = Runner.from_cfg(config), Counter()
    assert isinstance(runner.model.backbone, PVTv2) == (config.model.backbone.type == 'pvt_mm.PVTv2')
    assert isinstance(runner.model.backbone, PVT) == (config.model.backbone.type == 'pvt_mm.PVT')
    assert any(isinstance(hook, FiniteHook) for hook in runner.hooks)
    trained = {key: parameter for key, parameter in runner.model.named_parameters() if parameter.requires_grad}
    for key, parameter in trained.items():
        parameter.register_hook(lambda grad, key=key: gradients.update({key: grad.abs().sum().item()}))
    runner.train()
    assert runner.iter == 2
    assert gradients.keys() == trained.keys()
    assert all(map(math.isfinite, gradients.values()))
    return runner, gradients


# The configs of PVTv2, by their folder: what they are called after the arch.
V2 = dict(
    classification='300e',
    retinanet='1x',
    mask_rcnn='1x',
    semantic_fpn='80k',
    cascade_mask_rcnn='3x_ms',
    atss='3x_ms',
    gfl='3x_ms',
)
TRAINED = [
    'retinanet/pvt_t_1x',
    'retinanet/r18_1x',
    'retinanet/vit_s_p32_1x',
    'mask_rcnn/pvt_t_1x',
    'mask_rcnn/r50_gc_r4_1x',
    'detr/pvt_s_50e',
    'detr/r50_50e',
    'semantic_fpn/pvt_t_80k',
    'semantic_fpn/r18_80k',
    'trans2seg/pvt_s_40k',
    'trans2seg/r50_d16_40k',
    'deeplabv3plus/r50_d16_40k',
    'classification/pvt_t_300e',
    'demo/retinanet_shapes',
    *(f'{folder}/pvt_v2_b2_{V2[folder]}' for folder in V2),
    *(f'{folder}/pvt_v2_b2_li_{V2[folder]}' for folder in ('classification', 'retinanet', 'semantic_fpn')),
    *(f'retinanet/pvt_v2_{arch}_1x' for arch in ('b0', 'b1')),  # and tests/test_models/test_pvt_v2.py has b3 to b5
]


def family(name: str) -> tuple[str, str]:
    """Returns a config's detector, segmentor or classifier, and its kind of backbone."""
    backbone = read(name).model.backbone
    kinds = ('PVTv2', 'PVT', 'ResNe', 'VisionTransformer')
    return name.split('/')[0], next(kind for kind in kinds if kind in backbone.type)


def test_one_of_every_family_is_trained():
    every = {family(name) for name in CONFIGS if not name.startswith('heads/')}  # tests/test_heads.py trains those
    assert len(every) == 14 + 7
    assert {family(name) for name in TRAINED} == every


@pytest.mark.parametrize('name', TRAINED)
def test_config_trains_two_steps_and_tests(name, shapes, tmp_path):
    config = on_shapes(load_config(str(ROOT / f'configs/{name}.py')), shapes, tmp_path)
    runner, gradients = train(config)
    # Regressors have a gradient only if an anchor matches; the bias cancels in a softmax, up to rounding.
    exempt = ('reg_convs', '_reg', '_centerness', 'scales', 'conv_mask.bias')
    for key, gradient in gradients.items():
        assert gradient > 0 or any(part in key for part in exempt), key
    results = runner.model.test_step(next(iter(runner.test_dataloader)))
    metrics = runner.test()
    for result in results:
        if config.default_scope == 'mmengine':
            assert result.pred_score.sum().item() == pytest.approx(1)
        elif config.default_scope == 'mmseg':
            assert result.pred_sem_seg.data.shape == (1, *result.ori_shape)
            assert 0 <= result.pred_sem_seg.data.min() <= result.pred_sem_seg.data.max() < len(CLASSES)
            assert result.seg_logits.data.isfinite().all()
        else:
            boxes = result.pred_instances
            assert len(boxes) > 0
            assert boxes.bboxes.isfinite().all()
            assert boxes.labels.max() < len(CLASSES)
            assert 0 <= boxes.scores.min() <= boxes.scores.max() <= 1
            assert 'mask_rcnn' not in name or boxes.masks.shape == (len(boxes), *result.ori_shape)
    if config.default_scope == 'mmengine':
        assert metrics['accuracy/top1'] in (0, 50, 100)
        assert metrics['accuracy/error1'] == 100 - metrics['accuracy/top1']
    elif config.default_scope == 'mmseg':
        assert 0 <= metrics['mIoU'] <= 100
    else:
        assert 'coco/bbox_mAP' in metrics
        assert ('coco/segm_mAP' in metrics) == ('mask_rcnn' in name)
    logged = [json.loads(line) for path in tmp_path.rglob('scalars.json') for line in path.read_text().splitlines()]
    losses = [line['loss'] for line in logged if 'loss' in line]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))


def test_every_other_pipeline_loads_its_data(shapes, tmp_path):
    names = {}  # by pipeline
    for name in [*TRAINED, *CONFIGS]:
        pipelines = (read(name)[f'{split}_dataloader'].dataset.pipeline for split in ('train', 'val'))
        names.setdefault(str(list(pipelines)), name)
    others = sorted(set(names.values()) - set(TRAINED))
    assert len(others) == 3, others
    for name in others:
        config = on_shapes(load_config(str(ROOT / f'configs/{name}.py')), shapes, tmp_path)
        init_default_scope(config.default_scope)
        for split in ('train', 'val'):
            batch = next(iter(Runner.build_dataloader(config[f'{split}_dataloader'])))
            assert [image.shape[0] for image in batch['inputs']] == [3, 3]
            assert max(max(image.shape) for image in batch['inputs']) <= 64


# ------------------------------------------------------------------------------------------------------------- recipes


def values_of(config: object, key: str) -> Iterator[object]:
    """Yields the values of a key anywhere in a config."""
    if isinstance(config, dict):
        yield from [config[key]] if key in config else ()
        config = list(config.values())
    for part in config if isinstance(config, (list, tuple)) else ():
        yield from values_of(part, key)


def arch_of(stem: str) -> str:
    """Returns the arch of a config of ours, by its name."""
    v2 = re.match(r'pvt_v2_(b\d(?:_li)?)_', stem)
    return v2[1] if v2 else 'small_wide' if 'wide' in stem else ARCH_NAMES[stem[4]]


def weights_of(name: str) -> str | None:
    """Returns the checkpoint that a config's backbone should start from, by the config's name."""
    folder, stem = name.split('/')
    size = stem.split('_')[1]
    if folder in ('classification', 'demo') or 'scratch' in stem:
        return dict(retinanet_shapes_pretrained='work_dirs/demo_pretraining/classifier/epoch_30.pth').get(stem)
    if stem.startswith('pvt'):
        released = WEIGHTS.format(('v2_' if size == 'v2' else '') + arch_of(stem))
        return 'checkpoints/pvt_small_wide.pth' if 'wide' in stem else released
    if stem.startswith('vit'):
        return f'checkpoints/vit_small_{stem.split("_")[2]}.pth'
    if stem.startswith('x'):
        published = 'torchvision://resnext101_64x4d.imagenet1k_v1'
        return published if size == '64x4d' else 'checkpoints/resnext101_32x4d.pth'
    return f'torchvision://resnet{stem.split("_")[0][1:]}'


@pytest.mark.parametrize('folder', PAPER)
def test_every_config_has_its_weights_classes_and_reliable_training(folder):
    classes = dict(classification=1000, demo=3).get(folder, 80)
    for stem in stems(folder):
        name = f'{folder}/{stem}'
        config = read(name)
        backbone = config.model.backbone
        ours = 'pvt_mm.PVTv2' if 'v2' in stem else 'pvt_mm.PVT'
        assert (backbone.type == ours) == (stem.startswith('pvt') or folder == 'demo'), name
        assert (backbone.get('init_cfg') or {}).get('checkpoint') == weights_of(name), name
        assert backbone.get('frozen_stages', -1) == (
            1 if backbone.type in ('ResNet', 'ResNeXt') and folder in ('retinanet', 'mask_rcnn', 'detr') else -1
        ), name
        segments = config.default_scope == 'mmseg'
        assert set(values_of(config.model, 'num_classes')) == {150 if segments else classes}, name
        loop = 'IterBasedTrainLoop' if segments else 'EpochBasedTrainLoop'
        assert (config.train_cfg.type, config.train_cfg.max_broken_images) == (f'pvt_mm.{loop}', 10), name
        hooks = config.default_hooks
        assert (hooks.checkpoint.type, hooks.finite.type) == ('pvt_mm.CheckpointHook', 'pvt_mm.FiniteHook'), name


# Section 5.2 of the paper, and per arch the stochastic depth of the authors' release; PVTv2's release.
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
    *((f'pvt_v2_{arch}_1x', arch, 12, 0.1) for arch in ARCHS_V2),
]


@pytest.mark.parametrize(('name', 'arch', 'epochs', 'drop_path'), DETECTION)
def test_retinanet_recipes_are_the_papers(name, arch, epochs, drop_path):
    config = read(f'retinanet/{name}')
    backbone = config.model.backbone
    assert backbone.arch == arch
    assert backbone.get('drop_path_rate', 0.1) == drop_path
    images, lr = (8, 1e-4 / 1.4) if arch in ('b4', 'b5') else (16, 1e-4)
    assert config.optim_wrapper.optimizer == dict(type='AdamW', lr=lr, weight_decay=1e-4)
    assert config.optim_wrapper.keys() & {'clip_grad', 'paramwise_cfg'} == set()
    assert config.train_dataloader.batch_size * 8 == config.auto_scale_lr.base_batch_size == images
    check_schedule(config, epochs)
    test = next(step for step in config.test_dataloader.dataset.pipeline if step.type == 'Resize')
    train = next(step for step in config.train_dataloader.dataset.pipeline if 'Resize' in step.type)
    short = 640 if '640' in name else 800
    assert tuple(test.scale) == (1333, short)
    if epochs == 36:
        assert train.type == 'RandomResize'
        assert [tuple(scale) for scale in train.scale] == [(1333, 640), (1333, 800)]
        flip, pack = config.train_dataloader.dataset.pipeline[3:]
        assert (flip, pack) == (dict(type='RandomFlip', prob=0.5), dict(type='PackDetInputs'))
    else:
        assert tuple(train.scale) == (1333, short)
    scales = [tuple(resize.scale) for resize in config.tta_pipeline[1].transforms[0]]
    assert scales == [(1333, short), (666, short // 2), (2000, short * 3 // 2)]
    assert config.model.neck.in_channels == list((ARCHS | ARCHS_V2)[arch].embed_dims)


def check_schedule(config: Config, epochs: int) -> None:
    """Checks that the rate of a detector rises for 500 steps, and falls twice."""
    assert config.train_cfg.max_epochs == epochs
    warm_up, steps = ({k: v for k, v in part.items() if k != '_scope_'} for part in config.param_scheduler)
    assert warm_up == dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500)
    milestones = {12: [8, 11], 36: [27, 33]}[epochs]
    assert steps == dict(type='MultiStepLR', begin=0, end=epochs, by_epoch=True, milestones=milestones, gamma=0.1)


@pytest.mark.parametrize(
    ('stem', 'rate'),  # relative to RetinaNet's
    [
        *((f'pvt_{size}_{schedule}', 1) for size in 'tsml' for schedule in ('1x', '3x_ms')),
        *((f'pvt_v2_{arch}_1x', 2) for arch in ARCHS_V2),
    ],
)
def test_mask_rcnns_recipes_are_retinanets(stem, rate):
    config, retinanet = (read(f'{folder}/{stem}') for folder in ('mask_rcnn', 'retinanet'))
    optimizer = retinanet.optim_wrapper.optimizer
    assert config.optim_wrapper == {**retinanet.optim_wrapper, 'optimizer': {**optimizer, 'lr': rate * optimizer.lr}}
    for key in ('param_scheduler', 'auto_scale_lr'):
        assert config[key] == retinanet[key]
    assert config.train_dataloader.batch_size == retinanet.train_dataloader.batch_size
    assert config.model.backbone == retinanet.model.backbone
    assert config.model.neck.in_channels == retinanet.model.neck.in_channels
    assert config.train_cfg.max_epochs == retinanet.train_cfg.max_epochs
    pipeline, expected = (c.train_dataloader.dataset.pipeline for c in (config, retinanet))
    assert pipeline[1] == {**expected[1], 'with_mask': True}
    assert [*pipeline[:1], *pipeline[2:]] == [*expected[:1], *expected[2:]]


CROPPED = [name for name in CONFIGS if 'v2' in name and name.endswith('3x_ms')]


@pytest.mark.parametrize('name', CROPPED)
def test_3x_recipes_of_pvt_v2_are_its_releases(name):
    config = read(name)
    check_schedule(config, 36)
    backbone, neck = config.model.backbone, config.model.neck
    assert (backbone.arch, backbone.get('drop_path_rate', 0.1)) == (arch_of(name.split('/')[1]), 0.1)
    assert neck.in_channels == list(ARCHS_V2[backbone.arch].embed_dims)
    assert config.train_dataloader.batch_size * 8 == config.auto_scale_lr.base_batch_size == 16
    init_default_scope('mmdet')
    with torch.device('meta'):
        model = MODELS.build(config.model)
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    assert not wrapper.clip_grad_kwargs
    assert isinstance(wrapper.optimizer, torch.optim.AdamW)
    norms = {parameter for name, parameter in model.named_parameters() if 'norm' in name}
    assert norms == {p for m in model.backbone.modules() if isinstance(m, torch.nn.LayerNorm) for p in m.parameters()}
    for group in wrapper.optimizer.param_groups:
        assert group['lr'] == 1e-4
        assert group['weight_decay'] == (0.0 if set(group['params']) <= norms else 0.05)
    load, annotations, flip, crops, pack = config.train_dataloader.dataset.pipeline
    assert [load.type, flip.type, flip.prob, pack.type] == ['LoadImageFromFile', 'RandomFlip', 0.5, 'PackDetInputs']
    assert annotations.get('with_mask', False) == ('mask' in name)
    assert annotations.with_bbox
    (resize,), (before, crop, after) = crops.transforms
    assert resize == after
    assert [min(scale) for scale in resize.scales] == [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800]
    assert [min(scale) for scale in before.scales] == [400, 500, 600]
    assert {max(scale) for scale in resize.scales + before.scales} == {1333}
    assert resize.keep_ratio
    assert before.keep_ratio
    assert (crop.crop_type, tuple(crop.crop_size), crop.allow_negative_crop) == ('absolute_range', (384, 600), True)


@pytest.mark.parametrize('folder', ['atss', 'gfl'])
def test_heads_of_table_4_of_pvt_v2(folder):
    model = read(f'{folder}/pvt_v2_b2_3x_ms').model
    assert (model.neck.start_level, model.neck.num_outs, model.neck.add_extra_convs) == (1, 5, 'on_output')
    assert model.bbox_head.loss_bbox == dict(type='GIoULoss', loss_weight=2.0)
    assert model.train_cfg.assigner == dict(type='ATSSAssigner', topk=9)
    assert model.test_cfg.nms == dict(type='nms', iou_threshold=0.6)
    if folder == 'gfl':
        assert model.bbox_head.loss_dfl == dict(type='DistributionFocalLoss', loss_weight=0.25)
        assert model.bbox_head.reg_max == 16


def test_cascades_heads_are_swins():
    model = read('cascade_mask_rcnn/pvt_v2_b2_3x_ms').model
    assert model.type == 'CascadeRCNN'
    assert model.neck.num_outs == 5
    heads = model.roi_head.bbox_head
    assert len(heads) == 3
    for head in heads:
        assert (head.type, head.num_shared_convs, head.num_shared_fcs) == ('ConvFCBBoxHead', 4, 1)
        assert head.norm_cfg.type == 'SyncBN'
        assert (head.reg_class_agnostic, head.reg_decoded_bbox) == (False, True)
        assert head.loss_bbox == dict(type='GIoULoss', loss_weight=10.0)
    assert model.roi_head.mask_head.type == 'FCNMaskHead'


@pytest.mark.parametrize('name', stems('semantic_fpn'))
def test_semantic_fpn_recipes_are_section_5_3s(name):
    config = read(f'semantic_fpn/{name}')
    iterations = 320_000 if '320k' in name else 80_000
    assert config.train_cfg.max_iters == iterations
    assert config.optim_wrapper.optimizer == dict(type='AdamW', lr=1e-4, weight_decay=1e-4)
    preprocessor = config.model.data_preprocessor
    assert preprocessor.bgr_to_rgb
    assert (preprocessor.mean, preprocessor.std) == ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    assert config.model.decode_head.norm_cfg.type == 'SyncBN'
    (schedule,) = config.param_scheduler
    assert schedule == dict(type='PolyLR', power=0.9, eta_min=0, begin=0, end=iterations, by_epoch=False)
    assert config.train_dataloader.batch_size * 4 == config.auto_scale_lr.base_batch_size == 16
    head = config.model.decode_head
    assert (head.type, head.channels, head.get('dropout_ratio', 0.1)) == ('FPNHead', 128, 0.1)
    if name.startswith('pvt'):
        backbone = config.model.backbone
        assert (backbone.arch, backbone.get('drop_path_rate', 0.1)) == (arch_of(name), 0.1)
        assert config.model.neck.in_channels == list((ARCHS | ARCHS_V2)[backbone.arch].embed_dims)


def test_segmentations_test_images_are_multiples_of_32(shapes):
    config = read('semantic_fpn/pvt_t_80k')
    init_default_scope('mmseg')
    image = str(next((shapes / 'val2017').iterdir()))
    assert [step.type for step in config.test_dataloader.dataset.pipeline][3] == 'LoadAnnotations'
    pipeline = [TRANSFORMS.build(step) for step in config.test_dataloader.dataset.pipeline[:3]]
    results = pipeline[0](dict(img_path=image))
    results['img'] = np.zeros((333, 500, 3), np.uint8)
    for step in pipeline[1:]:
        results = step(results)
    assert results['img'].shape == results['img_shape'] + (3,) == (512, 800, 3)  # 512 x 769 before
    bases = [tuple(step.scale) for step in config.tta_pipeline[1].transforms[0]]
    assert bases == [(1024, 256), (1536, 384), (2048, 512), (2560, 640), (3072, 768), (3584, 896)]


BASELINES = [stem for stem in stems('retinanet') if stem[0] in 'rx']


@pytest.mark.parametrize('folder', ['retinanet', 'mask_rcnn'])
@pytest.mark.parametrize('name', BASELINES)
def test_baselines_recipes_are_mmdetections(folder, name):
    config = read(f'{folder}/{name}')
    three = name.endswith('3x_ms')
    lr = dict(retinanet=0.01, mask_rcnn=0.02)[folder]
    assert config.optim_wrapper.optimizer == dict(type='SGD', lr=lr, momentum=0.9, weight_decay=0.0001)
    assert config.train_cfg.max_epochs == (36 if three else 12)
    assert config.param_scheduler[1].milestones == ([27, 33] if three else [8, 11])
    assert config.model.backbone.depth == int(name.split('_')[0][1:])
    groups = config.model.backbone.get('groups', 1)
    assert groups == (int(name.split('_')[1].split('x')[0]) if name[0] == 'x' else 1)


def test_global_context_is_table_10s():
    config, plain = read('mask_rcnn/r50_gc_r4_1x'), read('mask_rcnn/r50_1x')
    assert config.optim_wrapper.optimizer == plain.optim_wrapper.optimizer
    assert config.param_scheduler == plain.param_scheduler
    backbone = config.model.backbone
    (plugin,) = backbone.plugins
    assert plugin.cfg == dict(type='ContextBlock', ratio=1 / 4)
    assert tuple(plugin.stages) == (False, True, True, True)
    assert backbone.norm_cfg.type == 'SyncBN'
    assert config.tta_model.type == 'pvt_mm.InstanceTTAModel'


@pytest.mark.parametrize(('patch', 'scales'), [(32, (8, 4, 2, 1)), (4, (1, 1 / 2, 1 / 4, 1 / 8))])
def test_vits_are_footnote_3s(patch, scales):
    config = read(f'retinanet/vit_s_p{patch}_1x')
    assert config.model.backbone.patch_size == patch
    assert config.model.backbone.out_indices == (1, 3, 5, 7)  # layers 2, 4, 6 and 8
    assert tuple(config.model.neck[0].scales) == scales
    assert [patch / scale for scale in scales] == [4, 8, 16, 32]
    assert config.optim_wrapper.optimizer == dict(type='AdamW', lr=1e-4, weight_decay=1e-4)
    with DefaultScope.overwrite_default_scope('mmseg'):
        vit = MODELS.build({**config.model.backbone, 'patch_size': 16})
    classifier = sum(parameter.numel() for parameter in vit.parameters()) + 2 * 768 + 769 * 1000
    assert classifier / 1e6 == pytest.approx(48.8, abs=0.05)  # ViT-Small/16 of Table 2


@pytest.mark.parametrize('name', ['pvt_s_50e', 'r50_50e'])
def test_detrs_recipe_is_section_5_4s(name):
    config = read(f'detr/{name}')
    assert tuple(config.model.backbone.out_indices) == (3,)
    assert config.train_cfg.max_epochs == 50
    (schedule,) = config.param_scheduler
    assert schedule == dict(type='MultiStepLR', by_epoch=True, begin=0, end=50, milestones=[33], gamma=0.1)
    assert config.optim_wrapper.optimizer == dict(type='AdamW', lr=1e-4, weight_decay=1e-4)
    assert config.optim_wrapper.clip_grad.max_norm == 0.1
    assert config.optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult == 0.1
    assert config.train_dataloader.batch_size * 8 == config.auto_scale_lr.base_batch_size == 16
    pipeline = config.train_dataloader.dataset.pipeline
    assert [step.type for step in pipeline[2:]] == ['RandomResize', 'RandomFlip', 'PackDetInputs']
    assert [tuple(scale) for scale in pipeline[2].scale] == [(1333, 640), (1333, 800)]
    if name.startswith('pvt'):
        assert config.model.data_preprocessor.pad_size_divisor == 32


@pytest.mark.parametrize('dtype', HALF_DTYPES)
def test_detrs_matching_and_losses_hold_in_half_precision(dtype):
    """Boxes of more than 256 x 256 pixels have areas beyond what fp16 holds."""
    model = Config.fromfile(ROOT / 'configs/detr/pvt_s_50e.py').model  # the head changes it
    init_default_scope('mmdet')
    head = MODELS.build({**model.bbox_head, 'train_cfg': model.train_cfg, 'test_cfg': model.test_cfg})
    head.init_weights()
    boxes = torch.tensor([[10.0, 20, 1300, 790], [5, 5, 40, 60], [100, 200, 900, 700]])
    objects = InstanceData(bboxes=boxes, labels=torch.tensor([3, 0, 79]))
    hidden_states = torch.randn(6, 1, 100, 256, requires_grad=True)

    def losses():
        return head.loss_by_feat(*head(hidden_states), [objects], [dict(img_shape=(800, 1333))])

    expected = losses()
    with torch.autocast('cpu', dtype):
        half = losses()
    assert len(half) == 18  # three of each decoder layer
    for key, value in half.items():
        assert value.item() == pytest.approx(expected[key].item(), rel=0.05), key  # ties match otherwise
    sum(half.values()).backward()
    assert hidden_states.grad.isfinite().all()


@pytest.mark.parametrize(
    ('name', 'stride', 'rates'),
    [
        ('trans2seg/pvt_s_40k', 32, None),
        ('trans2seg/r50_d16_40k', 16, None),
        ('deeplabv3plus/r50_d8_40k', 8, (1, 12, 24, 36)),
        ('deeplabv3plus/r50_d16_40k', 16, (1, 6, 12, 18)),
    ],
)
def test_table_7s_recipes_are_semantic_fpns_in_40k_iterations(name, stride, rates):
    config, fpn = read(name), read('semantic_fpn/pvt_s_80k')
    for key in ('optim_wrapper', 'train_dataloader', 'test_dataloader', 'tta_pipeline', 'auto_scale_lr'):
        assert config[key] == fpn[key]
    assert config.train_cfg == {**fpn.train_cfg, 'max_iters': 40_000}
    assert config.param_scheduler == [{**fpn.param_scheduler[0], 'end': 40_000}]
    assert config.model.decode_head.get('dilations') == rates
    assert config.model.decode_head.norm_cfg == fpn.model.decode_head.norm_cfg
    assert config.model.data_preprocessor == fpn.model.data_preprocessor
    if 'pvt' in name:
        assert config.model.backbone == fpn.model.backbone
    else:
        assert config.model.backbone.contract_dilation
    init_default_scope('mmseg')
    with torch.device('meta'):
        backbone = MODELS.build(config.model.backbone)
        backbone.eval()
        assert backbone(torch.zeros(1, 3, 64, 64))[-1].shape[2:] == (64 // stride, 64 // stride)


CLASSIFICATION = [
    ('pvt_t_300e', 'tiny', 0.1, None),
    ('pvt_s_300e', 'small', 0.1, None),
    ('pvt_m_300e', 'medium', 0.3, 1.0),
    ('pvt_l_300e', 'large', 0.3, 1.0),
    ('pvt_s_wide_300e', 'small_wide', 0.1, None),
    *((f'pvt_v2_{arch}_300e', arch, 0.1, None) for arch in ('b0', 'b1', 'b2', 'b2_li')),
    *((f'pvt_v2_{arch}_300e', arch, 0.3, 1.0) for arch in ('b3', 'b4', 'b5')),
]


@pytest.mark.parametrize(('name', 'arch', 'drop_path', 'clip'), CLASSIFICATION)
def test_imagenets_recipes_are_section_5_1s_and_the_authors(name, arch, drop_path, clip):
    config = read(f'classification/{name}')
    assert (config.model.backbone.arch, config.model.backbone.drop_path_rate) == (arch, drop_path)
    assert config.model.backbone.out_type == ('avg_featmap' if 'v2' in name else 'cls_token')
    assert config.model.head.in_channels == (ARCHS | ARCHS_V2)[arch].embed_dims[-1]
    assert (config.model.head.num_classes, config.model.head.label_smoothing) == (1000, 0.1)
    assert config.optim_wrapper.get('clip_grad') == (clip and dict(max_norm=clip))
    assert config.optim_wrapper.optimizer == dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05)
    exempt = dict(custom_keys={'cls_token.token': dict(decay_mult=0.0)})
    assert config.optim_wrapper.paramwise_cfg == (dict(flat_decay_mult=0.0) if 'v2' in name else exempt)
    assert config.train_dataloader.batch_size * 8 == config.auto_scale_lr.base_batch_size == 1024
    assert config.train_dataloader.sampler == dict(type='pvt_mm.RepeatAugSampler', num_repeats=3)
    warm_up, cosine = config.param_scheduler
    assert (warm_up.type, warm_up.end, warm_up.start_factor * 1e-3) == ('LinearLR', 5, pytest.approx(1e-6))
    assert (cosine.type, cosine.begin, cosine.end, cosine.eta_min) == ('CosineAnnealingLR', 5, 300, 1e-5)
    assert config.train_cfg.max_epochs == 300
    augmentations = {key: config.model.data_preprocessor[key] for key in ('erasing', 'mixup', 'cutmix', 'switch_prob')}
    assert augmentations == dict(erasing=0.25, mixup=0.8, cutmix=1.0, switch_prob=0.5)
    assert config.model.data_preprocessor.rand_augment == dict(num_ops=2, magnitude=9, magnitude_std=0.5)
    preprocessor = config.model.data_preprocessor
    assert preprocessor.bgr_to_rgb
    assert (preprocessor.mean, preprocessor.std) == ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    assert config.train_dataloader.drop_last
    assert config.default_hooks.checkpoint.save_best == 'accuracy/top1'
    train, test = (config[f'{split}_dataloader'].dataset.pipeline for split in ('train', 'test'))
    steps = ['LoadImageFromFile', 'pvt_mm.RandomResizedCrop', 'RandomFlip', 'pvt_mm.PackInputs']
    assert [step.type for step in train] == steps
    assert [step.type for step in test] == ['LoadImageFromFile', 'Resize', 'CenterCrop', 'pvt_mm.PackInputs']
    assert train[2].prob == 0.5
    assert test[1].keep_ratio
    assert train[1].backend == test[1].backend == 'pillow'
    crop = config.train_dataloader.dataset.pipeline[1]
    assert (crop.scale, tuple(crop.crop_ratio_range), crop.interpolation) == (224, (0.08, 1.0), 'bicubic')
    resize, centre = config.test_dataloader.dataset.pipeline[1:3]
    assert (min(resize.scale), resize.interpolation, centre.crop_size) == (256, 'bicubic', 224)


def test_pvt_v2s_biases_and_norms_have_no_weight_decay_on_imagenet():
    config = read('classification/pvt_v2_b0_300e')
    with torch.device('meta'):
        model = MODELS.build(config.model)
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    decays = {id(p): group['weight_decay'] for group in wrapper.optimizer.param_groups for p in group['params']}
    for key, parameter in model.named_parameters():
        assert decays[id(parameter)] == (0.0 if key.endswith('bias') or 'norm' in key else 0.05), key
    assert 'backbone.stages.0.layers.0.ffn.dwconv.weight' in dict(model.named_parameters())  # which decays


def test_settings_of_single_parameters_match_some():
    models = {}
    for name in [*CONFIGS, *OWN_DATA]:
        config = read(name)
        keys = tuple(config.optim_wrapper.get('paramwise_cfg', {}).get('custom_keys', ()))
        if keys:
            models.setdefault((config.model.type, config.model.backbone.type, keys), config)
    assert len(models) == 7
    for (*_, keys), config in models.items():
        with torch.device('meta'), DefaultScope.overwrite_default_scope(config.default_scope):
            parameters = [name for name, _ in MODELS.build(config.model).named_parameters()]
        for key in keys:
            assert any(key in name for name in parameters), (config.filename, key)


def test_the_learning_rate_of_imagenet_rises_for_5_epochs_and_falls_for_295():
    config = read('classification/pvt_t_300e')
    wrapper = build_optim_wrapper(torch.nn.Linear(1, 1), dict(optimizer=config.optim_wrapper.optimizer))
    schedulers = [
        PARAM_SCHEDULERS.build(part, default_args=dict(optimizer=wrapper, epoch_length=10))
        for part in config.param_scheduler
    ]
    rates = []
    for _ in range(3000):
        rates.append(wrapper.get_lr()['lr'][0])
        wrapper.optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    assert rates[0] == pytest.approx(1e-6)
    assert max(rates) == pytest.approx(1e-3, rel=1e-3)
    assert rates.index(max(rates)) in (49, 50)
    assert rates[-1] == pytest.approx(1e-5, rel=0.05)
    half = 1e-5 + (1e-3 - 1e-5) / 2
    assert rates[50 + 2950 // 2] == pytest.approx(half, rel=0.01)


def test_the_readmes_example_turns_mmdets_retinanet_into_ours(tmp_path):
    blocks = [rest.split('```')[0] for rest in (ROOT / 'README.md').read_text().split('```python\n')[1:]]
    example = next(block for block in blocks if '_delete_=True' in block)
    (tmp_path / 'mine.py').write_text(f"_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'\n{example}")
    model = Config.fromfile(tmp_path / 'mine.py').model
    assert model.backbone.pop('init_cfg') == dict(type='Pretrained', checkpoint=WEIGHTS.format('v2_b2'))
    init_default_scope('mmdet')
    with torch.device('meta'):
        built = MODELS.build(model)
    assert isinstance(built.backbone, PVTv2)
    assert sum(p.numel() for p in built.parameters()) / 1e6 == pytest.approx(35.1, rel=0.01)


@pytest.mark.parametrize('folder', [*FOLDERS, 'heads'])
def test_configs_inherit_and_stay_short(folder):
    for stem in stems(folder):
        statements = ast.parse((ROOT / f'configs/{folder}/{stem}.py').read_text()).body
        assert ast.unparse(statements[0]).startswith('_base_ = '), stem
        assert len(statements) <= (14 if '640' in stem else 8), stem  # which has pipelines
