# RetinaNet with a PVT of half PVT-Tiny's width on generated shapes, from random weights: about 5 minutes on two CPU
# cores, for a box AP of 0.65 or more. `make demo` runs
#   tools/make_shapes.py data/shapes
#   tools/train.py configs/demo/retinanet_shapes.py --work-dir work_dirs/demo
_base_ = '../retinanet/pvt_t_1x.py'
data_root = 'data/shapes/'
metainfo = dict(classes=('circle', 'square', 'triangle'))
norm_cfg = dict(type='GN', num_groups=8)  # from random weights, the convolutions need it to learn in 8 epochs
model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=(32, 64, 160, 256),
            depths=(2, 2, 2, 2),
            num_heads=(1, 2, 5, 8),
            patch_sizes=(4, 2, 2, 2),
            sr_ratios=(8, 4, 2, 1),
            mlp_ratios=(8, 8, 4, 4),
        ),
        drop_path_rate=0.0,
        init_cfg=None,
    ),
    neck=dict(in_channels=[32, 64, 160, 256], out_channels=64, num_outs=3, norm_cfg=norm_cfg),
    bbox_head=dict(
        num_classes=3,
        in_channels=64,
        feat_channels=64,
        norm_cfg=norm_cfg,
        anchor_generator=dict(octave_base_scale=3, strides=[8, 16, 32]),  # shapes are 22 to 48 pixels wide
    ),
)

resize = dict(type='Resize', scale=(160, 160), keep_ratio=True)
pack = dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
load, boxes = dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)
train_pipeline = [load, boxes, resize, dict(type='RandomFlip', prob=0.5), dict(type='PackDetInputs')]
test_pipeline = [load, resize, boxes, pack]
shapes = dict(data_root=data_root, metainfo=metainfo)
train_dataloader = dict(batch_size=4, num_workers=1, dataset=dict(pipeline=train_pipeline, **shapes))
val_dataloader = dict(batch_size=4, num_workers=1, dataset=dict(pipeline=test_pipeline, **shapes))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=8, val_interval=2)
optim_wrapper = dict(optimizer=dict(lr=5e-4, weight_decay=0.01), clip_grad=dict(max_norm=10, norm_type=2))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=8, eta_min=1e-6, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=25), checkpoint=dict(max_keep_ckpts=2))
randomness = dict(seed=0)
auto_scale_lr = dict(base_batch_size=4)
