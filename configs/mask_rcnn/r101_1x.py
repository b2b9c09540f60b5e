# Mask R-CNN with ResNet-101, 1x schedule. Paper: box AP 40.4, mask AP 36.4 (Table 4), 8 V100:
#   tools/dist_train.sh configs/mask_rcnn/r101_1x.py 8
_base_ = './r50_1x.py'
model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')))
