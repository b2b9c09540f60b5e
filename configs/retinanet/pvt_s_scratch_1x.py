# RetinaNet with PVT-Small from random weights. Paper: 13.8 AP below pvt_s_1x (Figure 5), 8 V100:
#   tools/dist_train.sh configs/retinanet/pvt_s_scratch_1x.py 8
_base_ = './pvt_s_1x.py'
model = dict(backbone=dict(init_cfg=None))
