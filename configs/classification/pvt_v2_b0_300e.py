# PVTv2-B0 on ImageNet, 300 epochs. PVT v2 paper: top-1 error 29.5 % (Table 2), 8 V100 GPUs, 128 images each:
#   tools/dist_train.sh configs/classification/pvt_v2_b0_300e.py 8
_base_ = './pvt_v2_b2_300e.py'
model = dict(backbone=dict(arch='b0'), head=dict(in_channels=256))
