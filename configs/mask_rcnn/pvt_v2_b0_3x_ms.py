# Mask R-CNN with PVTv2-B0, 3x schedule, DETR's crops. README of PVT v2's release: box AP 41.6, mask AP 38.2, 8 V100:
#   tools/dist_train.sh configs/mask_rcnn/pvt_v2_b0_3x_ms.py 8
# The release has no config of it: the recipe is PVTv2-B2's.
_base_ = './pvt_v2_b2_3x_ms.py'
weights = 'https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b0.pth'
model = dict(backbone=dict(arch='b0', init_cfg=dict(checkpoint=weights)), neck=dict(in_channels=[32, 64, 160, 256]))
