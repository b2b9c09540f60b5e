# Trans2Seg with PVT-Small, 40k iterations (section 5.4). Paper: mIoU 42.6 (Table 7), 4 V100 GPUs, 4 images each:
#   tools/dist_train.sh configs/trans2seg/pvt_s_40k.py 4
_base_ = [
    '../_base_/encoder_decoder_512.py',
    '../_base_/ade20k_512.py',
    '../_base_/schedule_40k.py',
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
    decode_head=dict(
        type='pvt_mm.Trans2SegHead',
        in_channels=(64, 512),
        num_classes=150,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        align_corners=False,
    ),
)
