# RetinaNet with ResNet-50, 1x schedule. Paper: AP 36.3 (Table 3), 8 V100:
#   tools/dist_train.sh configs/retinanet/r50_1x.py 8
# The recipe is MMDetection's own: SGD, and the first stage frozen.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
