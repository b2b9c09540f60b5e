# RetinaNet with PVT-Small from random weights. Paper: 8.4 AP below pvt_s_3x_ms (Figure 5), 8 V100:
#   tools/dist_train.sh configs/retinanet/pvt_s_scratch_3x_ms.py 8
_base_ = './pvt_s_3x_ms.py'
model = dict(backbone=dict(init_cfg=None))
