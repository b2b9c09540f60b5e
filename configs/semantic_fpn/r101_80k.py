# Semantic FPN with ResNet-101, 80k iterations. Paper: mIoU 38.8 (Table 5), 4 V100:
#   tools/dist_train.sh configs/semantic_fpn/r101_80k.py 4
_base_ = './r50_80k.py'
model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')))
