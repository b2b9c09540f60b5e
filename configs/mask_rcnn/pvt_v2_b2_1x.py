# Mask R-CNN with PVTv2-B2, 1x schedule. PVT v2 paper: box AP 45.3, mask AP 41.2 (Table 3), 8 V100 GPUs, 2 images each:
#   tools/dist_train.sh configs/mask_rcnn/pvt_v2_b2_1x.py 8
# NOTE: the learning rate of the authors' release; their text has 1e-4.
_base_ = ['./pvt_s_1x.py', '../_base_/pvt_v2_b2.py']
model = dict(backbone=_base_.pvt)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
