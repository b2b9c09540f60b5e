# Semantic FPN with PVT-Large, 80k iterations. Paper: mIoU 42.1 (Table 5), 4 V100:
#   tools/dist_train.sh configs/semantic_fpn/pvt_l_80k.py 4
_base_ = './pvt_s_80k.py'
weights = 'https://github.com/whai362/PVT/releases/download/v2/pvt_large.pth'
model = dict(backbone=dict(arch='large', init_cfg=dict(checkpoint=weights)))
