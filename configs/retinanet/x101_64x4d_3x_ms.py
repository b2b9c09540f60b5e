# RetinaNet with ResNeXt-101-64x4d, 3x schedule, shorter side from 640 to 800. Paper: AP 41.8 (Table 3), 8 V100:
#   tools/dist_train.sh configs/retinanet/x101_64x4d_3x_ms.py 8
_base_ = './r50_3x_ms.py'
weights = 'torchvision://resnext101_64x4d.imagenet1k_v1'
model = dict(backbone=dict(type='ResNeXt', depth=101, groups=64, base_width=4, init_cfg=dict(checkpoint=weights)))
