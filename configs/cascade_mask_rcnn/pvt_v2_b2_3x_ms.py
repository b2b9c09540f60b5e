# Cascade Mask R-CNN with PVTv2-B2, 3x schedule, DETR's crops. PVT v2 paper: box AP 51.1 (Table 4); README of its
# release: mask AP 44.4. 8 V100 GPUs, 2 images each:
#   tools/dist_train.sh configs/cascade_mask_rcnn/pvt_v2_b2_3x_ms.py 8 --amp
# The heads are those of Swin's authors, which MMDetection has with ConvNeXt: 4 convolutions with SyncBN, GIoU.
_base_ = [
    'mmdet::convnext/cascade-mask-rcnn_convnext-t-p4-w7_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py',
    '../_base_/pvt_v2_b2.py',
    '../_base_/coco_3x_crops.py',
]
custom_imports = None  # of ConvNeXt
model = dict(backbone=_base_.pvt, neck=_base_.pvt_channels)
train_cfg, default_hooks = dict(max_epochs=36, **_base_.loop), _base_.hooks
optim_wrapper, param_scheduler = _base_.adamw_3x, _base_.schedule_3x
train_dataloader = dict(dataset=dict(pipeline=_base_.crops_with_masks))
