# RetinaNet with ResNeXt-101-32x4d, 1x schedule. Paper: AP 39.9 (Table 3), 8 V100:
#   tools/dist_train.sh configs/retinanet/x101_32x4d_1x.py 8
# torchvision has no ImageNet weights of this model: put your own, with its keys, at `weights`, or train from random
# weights with --cfg-options model.backbone.init_cfg=None
_base_ = './r50_1x.py'
weights = 'checkpoints/resnext101_32x4d.pth'
model = dict(backbone=dict(type='ResNeXt', depth=101, groups=32, base_width=4, init_cfg=dict(checkpoint=weights)))
