# PVT-Tiny on ImageNet, 300 epochs. Paper: top-1 error 24.9 % (Table 2), 8 V100 GPUs, 128 images each:
#   tools/dist_train.sh configs/classification/pvt_t_300e.py 8
_base_ = './pvt_s_300e.py'
model = dict(backbone=dict(arch='tiny'))
