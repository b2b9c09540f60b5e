# Mask R-CNN with PVT-Tiny, 1x schedule. Paper: box AP 36.7, mask AP 35.1 (Table 4), 8 V100:
#   tools/dist_train.sh configs/mask_rcnn/pvt_t_1x.py 8
_base_ = './pvt_s_1x.py'
weights = 'https://github.com/whai362/PVT/releases/download/v2/pvt_tiny.pth'
model = dict(backbone=dict(arch='tiny', init_cfg=dict(checkpoint=weights)))
