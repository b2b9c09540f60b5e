# RetinaNet with ResNet-101, 1x schedule. Paper: AP 38.5 (Table 3), 8 V100:
#   tools/dist_train.sh configs/retinanet/r101_1x.py 8
_base_ = './r50_1x.py'
model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')))
