# Mask R-CNN with PVTv2-B0, 1x schedule. PVT v2 paper: box AP 38.2, mask AP 36.2 (Table 3), 8 V100:
#   tools/dist_train.sh configs/mask_rcnn/pvt_v2_b0_1x.py 8
_base_ = './pvt_v2_b2_1x.py'
weights = 'https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b0.pth'
model = dict(backbone=dict(arch='b0', init_cfg=dict(checkpoint=weights)), neck=dict(in_channels=[32, 64, 160, 256]))
