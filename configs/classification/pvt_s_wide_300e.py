# PVT-Small-Wide on ImageNet, 300 epochs. Paper: top-1 error 19.3 % (Table 9), 8 V100 GPUs, 128 images each:
#   tools/dist_train.sh configs/classification/pvt_s_wide_300e.py 8
_base_ = './pvt_s_300e.py'
model = dict(backbone=dict(arch='small_wide'), head=dict(in_channels=712))
