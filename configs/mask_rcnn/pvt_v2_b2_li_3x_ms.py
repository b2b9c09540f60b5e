# Mask R-CNN with PVTv2-B2-Linear, 3x schedule, DETR's crops. In PVT v2's release, without a score. 8 V100:
#   tools/dist_train.sh configs/mask_rcnn/pvt_v2_b2_li_3x_ms.py 8 --amp
_base_ = './pvt_v2_b2_3x_ms.py'
weights = 'https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b2_li.pth'
model = dict(backbone=dict(arch='b2_li', init_cfg=dict(checkpoint=weights)))
