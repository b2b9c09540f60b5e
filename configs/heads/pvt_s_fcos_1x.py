# FCOS with PVT-Small, 1x schedule: MMDetection's config with section 5.2's optimizer. 8 GPUs, 2 images each:
#   tools/dist_train.sh configs/heads/pvt_s_fcos_1x.py 8
# MMDetection's FCOS is for Caffe's ResNet, in BGR without a standard deviation: PVT's images are ATSS's.
_base_ = ['mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', '../_base_/pvt_small.py']
images = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
model = dict(backbone=_base_.pvt, neck=_base_.pvt_channels, data_preprocessor=images)
optim_wrapper = _base_.adamw
train_cfg, default_hooks = _base_.loop, _base_.hooks
