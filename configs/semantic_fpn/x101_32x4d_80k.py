# Semantic FPN with ResNeXt-101-32x4d, 80k iterations. Paper: mIoU 39.7 (Table 5), 4 V100:
#   tools/dist_train.sh configs/semantic_fpn/x101_32x4d_80k.py 4
# torchvision has no ImageNet weights of this model: put your own, with its keys, at `weights`, or train from random
# weights with --cfg-options model.backbone.init_cfg=None
_base_ = './r50_80k.py'
weights = 'checkpoints/resnext101_32x4d.pth'
model = dict(backbone=dict(type='ResNeXt', depth=101, groups=32, base_width=4, init_cfg=dict(checkpoint=weights)))
