"""Three small trainings of PVT and PVTv2 on generated shapes, with everything that draws random numbers."""

from pathlib import Path

from tests.conftest import ROOT, TINY_ARCH, TINY_ARCH_LINEAR, TINY_ARCH_V2

COMMON = f"""
v1 = dict(arch=dict(_delete_=True, **{TINY_ARCH}), pretrain_img_size=64)
v2 = dict(type='pvt_mm.PVTv2', arch=dict(_delete_=True, **{TINY_ARCH_V2}))
linear = dict(type='pvt_mm.PVTv2', arch=dict(_delete_=True, **{TINY_ARCH_LINEAR}))
drop = dict(drop_rate=0.1, drop_path_rate=0.2, init_cfg=None)
optim_wrapper = dict(type='OptimWrapper', clip_grad=dict(max_norm=10))
"""
TASKS = dict(
    retinanet="""
_base_ = '{root}/configs/demo/retinanet_shapes.py'
model = dict(
    backbone=dict(**v2, **drop), neck=dict(in_channels=[8, 16, 24, 32]), test_cfg=dict(score_thr=0.0)
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomResize', scale=[(96, 64), (96, 96)], keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(
    batch_size=2,
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(data_root='{shapes}/', pipeline=train_pipeline),
)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root='{shapes}/'))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='{shapes}/annotations/instances_val2017.json')
test_evaluator = val_evaluator
custom_hooks = [dict(type='EMAHook', momentum=0.1)]
train_cfg = dict(max_epochs={length}, val_interval=2)
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=20)]
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(max_keep_ckpts=2, save_best='coco/bbox_mAP'))
""",
    semantic_fpn="""
_base_ = '{root}/configs/semantic_fpn/pvt_t_80k.py'
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(**linear, **drop),
    neck=dict(in_channels=[8, 16, 24, 32]),
    decode_head=dict(num_classes=3),
)
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='RandomResize', scale=(128, 96), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(64, 64), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
dataset = dict(
    type='BaseSegDataset',
    data_root='{shapes}',
    reduce_zero_label=True,
    metainfo=dict(
        classes=('circle', 'square', 'triangle'), palette=[[200, 0, 0], [0, 200, 0], [0, 0, 200]]
    ),
)
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=pipeline, **dataset))
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline, **dataset))
test_dataloader = val_dataloader
train_cfg = dict(max_iters={iterations}, val_interval=12)
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0, begin=0, end={iterations}, by_epoch=False)]
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=6, max_keep_ckpts=2))
""",
    classifier="""
_base_ = '{root}/configs/classification/pvt_t_300e.py'
model = dict(backbone=dict(**v1, **drop), head=dict(num_classes=3, in_channels=32))
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='pvt_mm.RandomResizedCrop', scale=64),
    dict(type='RandomFlip', prob=0.5),
    dict(type='pvt_mm.PackInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='pvt_mm.PackInputs')]
train_dataloader = dict(
    batch_size=2,
    sampler=dict(num_repeats=2, selected_round=0),
    dataset=dict(data_root='{shapes}/classification', pipeline=pipeline),
)
val_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root='{shapes}/classification', pipeline=test_pipeline),
)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs={length}, val_interval=2)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(max_keep_ckpts=2))
""",
)
STEPS_OF_EPOCH = 6  # 12 images, 2 a step


def write_task(name: str, folder: Path, shapes: Path, epochs: int, workers: int = 0, more: str = '') -> Path:
    """Writes the config of a task, with ``epochs`` of :data:`STEPS_OF_EPOCH` and ``more`` lines at its end."""
    filled = TASKS[name].format(root=ROOT, shapes=shapes, length=epochs, iterations=epochs * STEPS_OF_EPOCH)
    base, rest = filled.strip().split('\n', 1)
    path = folder / f'{name}_{workers}.py'
    loading = f'train_dataloader.update(num_workers={workers}, persistent_workers={workers > 0})'
    path.write_text('\n'.join([base, COMMON, rest, loading, 'randomness = dict(seed=1)', more]) + '\n')
    return path
