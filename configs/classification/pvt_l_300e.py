# PVT-Large on ImageNet, 300 epochs, with the authors' stochastic depth and clipping. Paper: top-1 error 18.3 %
# (Table 2), 8 V100 GPUs, 128 images each:
#   tools/dist_train.sh configs/classification/pvt_l_300e.py 8
_base_ = './pvt_m_300e.py'
model = dict(backbone=dict(arch='large'))
