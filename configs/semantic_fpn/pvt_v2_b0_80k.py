# Semantic FPN with PVTv2-B0, 80k iterations. PVT v2 paper: mIoU 37.2 (Table 5), 4 V100:
#   tools/dist_train.sh configs/semantic_fpn/pvt_v2_b0_80k.py 4
_base_ = './pvt_v2_b2_80k.py'
weights = 'https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b0.pth'
model = dict(backbone=dict(arch='b0', init_cfg=dict(checkpoint=weights)), neck=dict(in_channels=[32, 64, 160, 256]))
