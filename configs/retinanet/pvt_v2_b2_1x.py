# RetinaNet with PVTv2-B2, 1x schedule. PVT v2 paper: AP 44.6 (Table 3), 8 V100 GPUs, 2 images each:
#   tools/dist_train.sh configs/retinanet/pvt_v2_b2_1x.py 8
_base_ = ['./pvt_s_1x.py', '../_base_/pvt_v2_b2.py']
model = dict(backbone=_base_.pvt)
