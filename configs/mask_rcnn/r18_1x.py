# Mask R-CNN with ResNet-18, 1x schedule. Paper: box AP 34.0, mask AP 31.2 (Table 4), 8 V100:
#   tools/dist_train.sh configs/mask_rcnn/r18_1x.py 8
_base_ = './r50_1x.py'
model = dict(
    backbone=dict(depth=18, init_cfg=dict(checkpoint='torchvision://resnet18')),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
