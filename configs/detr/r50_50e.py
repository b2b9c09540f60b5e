# DETR with ResNet-50, 50 epochs (section 5.4). Paper: AP 32.3 (Table 6), 8 V100 GPUs, 2 images each:
#   tools/dist_train.sh configs/detr/r50_50e.py 8
# MMDetection's DETR, with its authors' optimizer; flips and the shorter sides of section 5.2, without crops.
_base_ = ['mmdet::detr/detr_r50_8xb2-150e_coco.py', '../_base_/coco_3x_ms.py']
train_cfg = dict(type='pvt_mm.EpochBasedTrainLoop', max_epochs=50, max_broken_images=10)
default_hooks = dict(
    checkpoint=dict(type='pvt_mm.CheckpointHook'),
    finite=dict(type='pvt_mm.FiniteHook'),
    backends=dict(type='pvt_mm.BackendsHook', cudnn_attention=False),
)
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, begin=0, end=50, milestones=[33], gamma=0.1)]
train_dataloader = dict(dataset=dict(pipeline=_base_.multi_scale))
