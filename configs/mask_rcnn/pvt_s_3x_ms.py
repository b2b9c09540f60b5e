# Mask R-CNN with PVT-Small, 3x schedule, shorter side from 640 to 800 (section 5.2). Paper: box AP 43.0, mask AP 39.9
# (Table 4), 8 V100:
#   tools/dist_train.sh configs/mask_rcnn/pvt_s_3x_ms.py 8
_base_ = ['./pvt_s_1x.py', '../_base_/coco_3x_ms.py']
train_cfg = dict(max_epochs=36)
param_scheduler = _base_.schedule_3x
train_dataloader = dict(dataset=dict(pipeline=_base_.multi_scale_with_masks))
