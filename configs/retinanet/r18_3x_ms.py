# RetinaNet with ResNet-18, 3x schedule, shorter side from 640 to 800. Paper: AP 35.4 (Table 3), 8 V100:
#   tools/dist_train.sh configs/retinanet/r18_3x_ms.py 8
_base_ = './r50_3x_ms.py'
model = dict(
    backbone=dict(depth=18, init_cfg=dict(checkpoint='torchvision://resnet18')),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
