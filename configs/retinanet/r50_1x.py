# RetinaNet with ResNet-50, 1x schedule. Paper: AP 36.3 (Table 3), 8 V100:
#   tools/dist_train.sh configs/retinanet/r50_1x.py 8
# The recipe is MMDetection's: SGD, with a frozen stem and first stage.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '../_base_/detection_1x.py',
    'mmdet::retinanet/retinanet_tta.py',
]
optim_wrapper = dict(optimizer=dict(lr=0.01))
