# Mask R-CNN with PVT-Large, 1x schedule. Paper: box AP 42.9, mask AP 39.5 (Table 4), 8 V100:
#   tools/dist_train.sh configs/mask_rcnn/pvt_l_1x.py 8
_base_ = './pvt_s_1x.py'
weights = 'https://github.com/whai362/PVT/releases/download/v2/pvt_large.pth'
model = dict(backbone=dict(arch='large', drop_path_rate=0.0, init_cfg=dict(checkpoint=weights)))
