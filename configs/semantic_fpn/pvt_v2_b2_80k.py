# Semantic FPN with PVTv2-B2, 80k iterations. PVT v2 paper: mIoU 45.2 (Table 5), 4 V100 GPUs, 4 images each:
#   tools/dist_train.sh configs/semantic_fpn/pvt_v2_b2_80k.py 4
# README.md has the command that trains as the authors' release does.
_base_ = ['./pvt_s_80k.py', '../_base_/pvt_v2_b2.py']
model = dict(backbone=_base_.pvt)
