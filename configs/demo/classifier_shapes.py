# PVT-Tiny as a classifier of generated shapes, in images of 64 pixels. `make demo-pretraining` starts with
#   tools/make_shapes.py data/shapes
#   tools/train.py configs/demo/classifier_shapes.py --work-dir work_dirs/demo_pretraining/classifier
_base_ = '../classification/pvt_t_300e.py'
data_root = 'data/shapes/classification/'
model = dict(
    data_preprocessor=dict(rand_augment=None, mixup=None, cutmix=None),  # too strong for three classes
    backbone=dict(pretrain_img_size=64, drop_path_rate=0.0),
    head=dict(num_classes=3),
)
load = dict(type='LoadImageFromFile')
train_pipeline = [
    load,
    dict(type='pvt_mm.RandomResizedCrop', scale=64, crop_ratio_range=(0.5, 1.0)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='pvt_mm.PackInputs'),
]
test_pipeline = [
    load,
    dict(type='Resize', scale=(64, 64)),
    dict(type='pvt_mm.PackInputs'),
]
train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    sampler=dict(num_repeats=1, selected_round=0),
    dataset=dict(data_root=data_root, pipeline=train_pipeline),
)
val_dataloader = dict(batch_size=50, num_workers=1, dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=30, val_interval=5)
optim_wrapper = dict(optimizer=dict(lr=5e-4), clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=True, begin=0, end=3, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=3, end=30, eta_min=1e-6, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=18), checkpoint=dict(interval=30, max_keep_ckpts=2, save_best=None))
randomness = dict(seed=0)
