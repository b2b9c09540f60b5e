# DeepLabV3+ with ResNet-50 at stride 16, 40k iterations (section 5.4). Paper: mIoU 40.6 (Table 7), 4 V100:
#   tools/dist_train.sh configs/deeplabv3plus/r50_d16_40k.py 4
_base_ = './r50_d8_40k.py'
model = dict(
    backbone=dict(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)),
    decode_head=dict(dilations=(1, 6, 12, 18)),
)
