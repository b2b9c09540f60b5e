# ATSS with PVT-Small, 1x schedule: MMDetection's config with section 5.2's optimizer. 8 GPUs, 2 images each:
#   tools/dist_train.sh configs/heads/pvt_s_atss_1x.py 8
_base_ = ['mmdet::atss/atss_r50_fpn_1x_coco.py', '../_base_/pvt_small.py']
model = dict(backbone=_base_.pvt, neck=_base_.pvt_channels)
optim_wrapper = _base_.adamw
train_cfg, default_hooks = _base_.loop, _base_.hooks
