# ATSS with PVTv2-B2, 3x schedule, DETR's crops. PVT v2 paper: AP 49.9 (Table 4), 8 V100 GPUs, 2 images each:
#   tools/dist_train.sh configs/atss/pvt_v2_b2_3x_ms.py 8 --amp
_base_ = ['mmdet::atss/atss_r50_fpn_1x_coco.py', '../_base_/pvt_v2_b2.py', '../_base_/coco_3x_crops.py']
model = dict(backbone=_base_.pvt, neck=_base_.pvt_channels)
train_cfg, default_hooks = dict(max_epochs=36, **_base_.loop), _base_.hooks
optim_wrapper, param_scheduler = _base_.adamw_3x, _base_.schedule_3x
train_dataloader = dict(dataset=dict(pipeline=_base_.crops))
