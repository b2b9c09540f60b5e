# Cascade Mask R-CNN with PVTv2-B2-Linear, 3x schedule, DETR's crops. PVT v2 paper: box AP 50.9 (Table 4); README of its
# release: mask AP 44.0. 8 V100 GPUs, 2 images each:
#   tools/dist_train.sh configs/cascade_mask_rcnn/pvt_v2_b2_li_3x_ms.py 8 --amp
_base_ = './pvt_v2_b2_3x_ms.py'
weights = 'https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b2_li.pth'
model = dict(backbone=dict(arch='b2_li', init_cfg=dict(checkpoint=weights)))
