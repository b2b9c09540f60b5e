# Mask R-CNN with PVTv2-B2, 3x schedule, DETR's crops. README of PVT v2's release: box AP 47.8, mask AP 43.1, 8 V100:
#   tools/dist_train.sh configs/mask_rcnn/pvt_v2_b2_3x_ms.py 8
_base_ = ['./pvt_s_1x.py', '../_base_/pvt_v2_b2.py', '../_base_/coco_3x_crops.py']
model = dict(backbone=_base_.pvt)
train_cfg = dict(max_epochs=36)
optim_wrapper, param_scheduler = _base_.adamw_3x, _base_.schedule_3x
train_dataloader = dict(dataset=dict(pipeline=_base_.crops_with_masks))
