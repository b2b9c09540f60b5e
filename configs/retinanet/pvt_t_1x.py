# RetinaNet with PVT-Tiny, 1x schedule. Paper: AP 36.7 (Table 3), 8 V100:
#   tools/dist_train.sh configs/retinanet/pvt_t_1x.py 8
_base_ = './pvt_s_1x.py'
weights = 'https://github.com/whai362/PVT/releases/download/v2/pvt_tiny.pth'
model = dict(backbone=dict(arch='tiny', init_cfg=dict(checkpoint=weights)))
