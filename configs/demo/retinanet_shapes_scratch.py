# RetinaNet with PVT-Tiny on generated shapes, from random weights: one half of `make demo-pretraining`.
#   tools/train.py configs/demo/retinanet_shapes_scratch.py --work-dir work_dirs/demo_pretraining/scratch
_base_ = './retinanet_shapes.py'
model = dict(
    backbone=dict(arch='tiny', pretrain_img_size=64),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
train_cfg = dict(max_epochs=6, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=6, eta_min=1e-6, convert_to_iter_based=True),
]
