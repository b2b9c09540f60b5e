# Mask R-CNN with ResNet-50, 3x schedule, shorter side from 640 to 800.
# Paper: box AP 41.0, mask AP 37.1 (Table 4), 8 V100:
#   tools/dist_train.sh configs/mask_rcnn/r50_3x_ms.py 8
_base_ = ['./r50_1x.py', '../_base_/coco_3x_ms.py']
train_cfg = dict(max_epochs=36)
param_scheduler = _base_.schedule_3x
train_dataloader = dict(dataset=dict(pipeline=_base_.multi_scale_with_masks))
