# Trans2Seg with ResNet-50 at stride 16, 40k iterations (section 5.4). Paper: mIoU 39.7 (Table 7), 4 V100:
#   tools/dist_train.sh configs/trans2seg/r50_d16_40k.py 4
# The paper's row has 56.1 M parameters, about 24 M of them in MLPs over the positions of one image size. Ours has none.
_base_ = './pvt_s_40k.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNetV1c',
        depth=50,
        strides=(1, 2, 2, 1),
        dilations=(1, 1, 1, 2),
        contract_dilation=True,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
    ),
    decode_head=dict(in_channels=(256, 2048)),
)
