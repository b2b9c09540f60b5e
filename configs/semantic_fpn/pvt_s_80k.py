# Semantic FPN with PVT-Small, 80k iterations (section 5.3). Paper: mIoU 39.8 (Table 5), 4 V100 GPUs, 4 images each:
#   tools/dist_train.sh configs/semantic_fpn/pvt_s_80k.py 4
_base_ = [
    '../_base_/encoder_decoder_512.py',
    '../_base_/ade20k_512.py',
    '../_base_/schedule_80k.py',
    '../_base_/segmentation_runtime.py',
]
model = dict(
    backbone=dict(
        type='pvt_mm.PVT',
        arch='small',
        init_cfg=dict(
            type='Pretrained', checkpoint='https://github.com/whai362/PVT/releases/download/v2/pvt_small.pth'
        ),
    ),
    neck=dict(type='FPN', in_channels=[64, 128, 320, 512], out_channels=256, num_outs=4),
    decode_head=dict(
        type='FPNHead',
        in_channels=[256, 256, 256, 256],
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32],
        channels=128,
        num_classes=150,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
)
