# RetinaNet with PVT-Large, 1x schedule. Paper: AP 42.6 (Table 3), 8 V100:
#   tools/dist_train.sh configs/retinanet/pvt_l_1x.py 8
_base_ = './pvt_s_1x.py'
weights = 'https://github.com/whai362/PVT/releases/download/v2/pvt_large.pth'
model = dict(backbone=dict(arch='large', drop_path_rate=0.0, init_cfg=dict(checkpoint=weights)))
