# RetinaNet with PVT-Large, 3x schedule, multi-scale. Paper: AP 43.4 (Table 3), 8 V100:
#   tools/dist_train.sh configs/retinanet/pvt_l_3x_ms.py 8
_base_ = './pvt_s_3x_ms.py'
weights = 'https://github.com/whai362/PVT/releases/download/v2/pvt_large.pth'
model = dict(backbone=dict(arch='large', drop_path_rate=0.0, init_cfg=dict(checkpoint=weights)))
