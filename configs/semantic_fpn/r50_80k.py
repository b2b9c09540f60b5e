# Semantic FPN with ResNet-50, 80k iterations. Paper: mIoU 36.7 (Table 5), 4 V100:
#   tools/dist_train.sh configs/semantic_fpn/r50_80k.py 4
# ResNetV1c has a stem of three 3x3 convolutions, which Table 5's GFLOPs include; torchvision has no weights of it.
_base_ = './pvt_s_80k.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNetV1c',
        depth=50,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
    ),
    neck=dict(in_channels=[256, 512, 1024, 2048]),
)
