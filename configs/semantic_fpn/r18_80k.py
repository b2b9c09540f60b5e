# Semantic FPN with ResNet-18, 80k iterations. Paper: mIoU 32.9 (Table 5), 4 V100:
#   tools/dist_train.sh configs/semantic_fpn/r18_80k.py 4
_base_ = './r50_80k.py'
model = dict(
    backbone=dict(depth=18, init_cfg=dict(checkpoint='torchvision://resnet18')),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
