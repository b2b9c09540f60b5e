# Mask R-CNN with ResNet-18, 3x schedule, shorter side from 640 to 800.
# Paper: box AP 36.9, mask AP 33.6 (Table 4), 8 V100:
#   tools/dist_train.sh configs/mask_rcnn/r18_3x_ms.py 8
_base_ = './r50_3x_ms.py'
model = dict(
    backbone=dict(depth=18, init_cfg=dict(checkpoint='torchvision://resnet18')),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
