# Semantic FPN with PVT-Tiny, 80k iterations. Paper: mIoU 35.7 (Table 5), 4 V100:
#   tools/dist_train.sh configs/semantic_fpn/pvt_t_80k.py 4
_base_ = './pvt_s_80k.py'
weights = 'https://github.com/whai362/PVT/releases/download/v2/pvt_tiny.pth'
model = dict(backbone=dict(arch='tiny', init_cfg=dict(checkpoint=weights)))
