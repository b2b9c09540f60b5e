# RetinaNet with ResNet-101, 3x schedule, shorter side from 640 to 800. Paper: AP 40.9 (Table 3), 8 V100:
#   tools/dist_train.sh configs/retinanet/r101_3x_ms.py 8
_base_ = './r50_3x_ms.py'
model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')))
