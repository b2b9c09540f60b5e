# Mask R-CNN with PVT-Tiny, 3x schedule, multi-scale. Paper: box AP 39.8, mask AP 37.4 (Table 4), 8 V100:
#   tools/dist_train.sh configs/mask_rcnn/pvt_t_3x_ms.py 8
_base_ = './pvt_s_3x_ms.py'
weights = 'https://github.com/whai362/PVT/releases/download/v2/pvt_tiny.pth'
model = dict(backbone=dict(arch='tiny', init_cfg=dict(checkpoint=weights)))
