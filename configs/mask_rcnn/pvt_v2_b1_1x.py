# Mask R-CNN with PVTv2-B1, 1x schedule. PVT v2 paper: box AP 41.8, mask AP 38.8 (Table 3), 8 V100:
#   tools/dist_train.sh configs/mask_rcnn/pvt_v2_b1_1x.py 8
_base_ = './pvt_v2_b2_1x.py'
weights = 'https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b1.pth'
model = dict(backbone=dict(arch='b1', init_cfg=dict(checkpoint=weights)))
