# Mask R-CNN with ResNet-50, 1x schedule. Paper: box AP 38.0, mask AP 34.4 (Table 4), 8 V100:
#   tools/dist_train.sh configs/mask_rcnn/r50_1x.py 8
# The recipe is MMDetection's own: SGD, and the first stage frozen.
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '../_base_/detection_1x.py',
    '../_base_/mask_rcnn_tta.py',
]
