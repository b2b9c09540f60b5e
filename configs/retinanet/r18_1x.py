# RetinaNet with ResNet-18, 1x schedule. Paper: AP 31.8 (Table 3), 8 V100:
#   tools/dist_train.sh configs/retinanet/r18_1x.py 8
_base_ = './r50_1x.py'
model = dict(
    backbone=dict(depth=18, init_cfg=dict(checkpoint='torchvision://resnet18')),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
