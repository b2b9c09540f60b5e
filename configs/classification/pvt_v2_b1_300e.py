# PVTv2-B1 on ImageNet, 300 epochs. PVT v2 paper: top-1 error 21.3 % (Table 2), 8 V100 GPUs, 128 images each:
#   tools/dist_train.sh configs/classification/pvt_v2_b1_300e.py 8
_base_ = './pvt_v2_b2_300e.py'
model = dict(backbone=dict(arch='b1'))
