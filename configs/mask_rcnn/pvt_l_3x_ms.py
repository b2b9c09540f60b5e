# Mask R-CNN with PVT-Large, 3x schedule, multi-scale. Paper: box AP 44.5, mask AP 40.7 (Table 4), 8 V100:
#   tools/dist_train.sh configs/mask_rcnn/pvt_l_3x_ms.py 8
_base_ = './pvt_s_3x_ms.py'
weights = 'https://github.com/whai362/PVT/releases/download/v2/pvt_large.pth'
model = dict(backbone=dict(arch='large', drop_path_rate=0.0, init_cfg=dict(checkpoint=weights)))
