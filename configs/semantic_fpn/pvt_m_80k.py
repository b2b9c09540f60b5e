# Semantic FPN with PVT-Medium, 80k iterations. Paper: mIoU 41.6 (Table 5), 4 V100:
#   tools/dist_train.sh configs/semantic_fpn/pvt_m_80k.py 4
_base_ = './pvt_s_80k.py'
weights = 'https://github.com/whai362/PVT/releases/download/v2/pvt_medium.pth'
model = dict(backbone=dict(arch='medium', init_cfg=dict(checkpoint=weights)))
