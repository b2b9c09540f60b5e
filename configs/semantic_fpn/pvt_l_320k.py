# Semantic FPN with PVT-Large, 320k iterations. Paper: mIoU 44.8 tested at several scales and flipped (Table 5), 4 V100:
#   tools/dist_train.sh configs/semantic_fpn/pvt_l_320k.py 4
#   tools/dist_test.sh configs/semantic_fpn/pvt_l_320k.py work_dirs/pvt_l_320k/iter_320000.pth 4 --tta
_base_ = './pvt_l_80k.py'
train_cfg = dict(max_iters=320000)
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0, begin=0, end=320000, by_epoch=False)]
