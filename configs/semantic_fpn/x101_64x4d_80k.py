# Semantic FPN with ResNeXt-101-64x4d, 80k iterations. Paper: mIoU 40.2 (Table 5), 4 V100:
#   tools/dist_train.sh configs/semantic_fpn/x101_64x4d_80k.py 4
_base_ = './r50_80k.py'
weights = 'torchvision://resnext101_64x4d.imagenet1k_v1'
model = dict(backbone=dict(type='ResNeXt', depth=101, groups=64, base_width=4, init_cfg=dict(checkpoint=weights)))
