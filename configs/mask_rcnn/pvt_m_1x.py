# Mask R-CNN with PVT-Medium, 1x schedule. Paper: box AP 42.0, mask AP 39.0 (Table 4), 8 V100:
#   tools/dist_train.sh configs/mask_rcnn/pvt_m_1x.py 8
_base_ = './pvt_s_1x.py'
weights = 'https://github.com/whai362/PVT/releases/download/v2/pvt_medium.pth'
model = dict(backbone=dict(arch='medium', drop_path_rate=0.0, init_cfg=dict(checkpoint=weights)))
