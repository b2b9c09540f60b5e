# Mask R-CNN with PVT-Medium, 3x schedule, multi-scale. Paper: box AP 44.2, mask AP 40.5 (Table 4), 8 V100:
#   tools/dist_train.sh configs/mask_rcnn/pvt_m_3x_ms.py 8
_base_ = './pvt_s_3x_ms.py'
weights = 'https://github.com/whai362/PVT/releases/download/v2/pvt_medium.pth'
model = dict(backbone=dict(arch='medium', drop_path_rate=0.0, init_cfg=dict(checkpoint=weights)))
