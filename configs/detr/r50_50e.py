# DETR with ResNet-50, 50 epochs (section 5.4). Paper: AP 32.3 (Table 6), 8 V100 GPUs, 2 images each:
#   tools/dist_train.sh configs/detr/r50_50e.py 8
# MMDetection's DETR, whose optimizer is the authors' too; flips and the shorter sides of section 5.2, and no crops.
_base_ = 'mmdet::detr/detr_r50_8xb2-150e_coco.py'
train_cfg = dict(max_epochs=50)
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, begin=0, end=50, milestones=[33], gamma=0.1)]
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomResize', scale=[(1333, 640), (1333, 800)], keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
