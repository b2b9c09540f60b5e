# PVTv2-B5 on ImageNet, 300 epochs, with the authors' stochastic depth and clipping. PVT v2 paper: top-1 error 16.2 %
# (Table 2), 8 V100 GPUs, 128 images each:
#   tools/dist_train.sh configs/classification/pvt_v2_b5_300e.py 8
_base_ = './pvt_v2_b2_300e.py'
model = dict(backbone=dict(arch='b5', drop_path_rate=0.3))
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
