# Mask R-CNN with ResNet-101, 3x schedule, shorter side from 640 to 800.
# Paper: box AP 42.8, mask AP 38.5 (Table 4), 8 V100:
#   tools/dist_train.sh configs/mask_rcnn/r101_3x_ms.py 8
_base_ = './r50_3x_ms.py'
model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')))
