# PVT-Medium on ImageNet, 300 epochs, with the authors' stochastic depth and clipping. Paper: top-1 error 18.8 %
# (Table 2), 8 V100 GPUs, 128 images each:
#   tools/dist_train.sh configs/classification/pvt_m_300e.py 8
_base_ = './pvt_s_300e.py'
model = dict(backbone=dict(arch='medium', drop_path_rate=0.3))
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
