# Masks on your own data: Mask R-CNN with PVTv2-B2, from ImageNet's weights.
#   tools/train.py configs/own_data/instance_segmentation_pvt_v2.py --data FOLDER
# The recipe is instance_segmentation.py's.
_base_ = ['./instance_segmentation.py', '../_base_/pvt_v2_b2.py']
model = dict(backbone=_base_.pvt)
