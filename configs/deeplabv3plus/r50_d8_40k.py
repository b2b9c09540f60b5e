# DeepLabV3+ with ResNet-50 at stride 8, 40k iterations (section 5.4). Paper: mIoU 41.5 (Table 7), 4 V100:
#   tools/dist_train.sh configs/deeplabv3plus/r50_d8_40k.py 4
# 256 channels come closest to the paper's 26.8 M parameters: MMSegmentation's model has a 3 x 3 convolution after the
# ASPP, where the paper's count leaves room for a 1 x 1.
_base_ = [
    '../_base_/encoder_decoder_512.py',
    '../_base_/ade20k_512.py',
    '../_base_/schedule_40k.py',
    '../_base_/segmentation_runtime.py',
]
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    backbone=dict(
        type='ResNetV1c',
        depth=50,
        strides=(1, 2, 1, 1),
        dilations=(1, 1, 2, 4),
        contract_dilation=True,
        norm_cfg=norm_cfg,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
    ),
    decode_head=dict(
        type='DepthwiseSeparableASPPHead',
        in_channels=2048,
        in_index=3,
        channels=256,
        dilations=(1, 12, 24, 36),
        c1_in_channels=256,
        c1_channels=48,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
    ),
)
